"""The tables of several runs: results, pairs, equal compute. Two of them also as raw numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from metarun.report.compare.groups import Group, by_benchmark
from metarun.report.compare.results import Interval, Pair, Result, equal_compute, pair_benchmarks, set_apart
from metarun.report.read.facts import component, episode_size
from metarun.report.tables.run import format_over_seeds, metric_values, metrics_of, name_metric
from metarun.report.tables.table import Table
from metarun.storage import text
from metarun.storage.text import NOTHING, count, duration, format_metric, metric_name

RESULT_NOTE = (
    "± is half of a 95 % interval: over test tasks (1.96 standard errors) for one seed, over seeds (Student's t) for "
    "several. Bold: best mean of its benchmark; the difference from the next may be chance."
)
SEEDS_NOTE = (
    " IQM: mean of the middle half of the seeds' means, with a 95 % bootstrap interval, which is too short for fewer "
    "than ten seeds. sd of seeds and of tasks: roots of the components of the scores' variance."
)
REPEATED_NOTE = " Repeated: runs of the same settings and seed as another, which add nothing to the mean."
PAIR_NOTE = (
    "Differences task by task on the same test episodes, several seeds averaged first; ± is half of a 95 % interval "
    "for these trained weights on new tasks, not for new seeds. Bold: the interval excludes 0; not corrected for the "
    "number of pairs."
)
BUDGET_NOTE = (
    "Best validation within the smallest amount that a run of this benchmark spent; a dash: the run spends none of "
    "it, or was not validated within it. ± is Student's t over seeds. The best validation is optimistic for all groups."
)
RAW_RESULT = (
    "algorithm", "benchmark", "metric", "runs", "repeated", "tested", "diverged", "mean", "half", "interval_over",
    "iqm", "iqm_low", "iqm_high", "sd_seeds", "sd_tasks", "best_validation", "outer_steps", "seconds",
    "inner_gradients",
)  # fmt: skip
RAW_PAIR = (
    "benchmark", "a", "b", "difference", "half", "unpaired_half", "wins", "ties", "losses", "tasks", "not_comparable",
)  # fmt: skip
SIDE_BY_SIDE = (
    "pointwise_log_likelihood", "joint_log_likelihood", "mse", "coverage_50", "coverage_90", "coverage_95",
)  # fmt: skip


def comparison_tables(results: Sequence[Result]) -> list[Table]:
    """All tables, in the order of reading."""
    groups = [r.group for r in results]
    return [
        *result_tables(results),
        *pair_tables(pair_benchmarks(groups)),
        *apart_tables(groups),
        *budget_tables(groups),
    ]


def result_tables(results: Sequence[Result]) -> list[Table]:
    matrix, groups = _matrix_table(results), [r.group for r in results]
    each = [_result_table([r for r in results if r.group.benchmark == name]) for name in by_benchmark(groups)]
    return [*([matrix] if matrix else []), *each, *_side_by_side_tables(groups)]


def format_interval(metric: str, interval: Interval) -> str:
    """Format an interval in display units: `90.15 ± 0.56 %`."""
    scale = text.display_scale(metric)
    return format_metric(metric, interval.mean / scale, interval.half / scale)


def _format_number(metric: str, value: float) -> str:
    return format_metric(metric, value / text.display_scale(metric), unit=False)


def _result_table(results: Sequence[Result]) -> Table:
    """A row for each group of a benchmark: what it reached, on how many seeds, at what cost."""
    group, several = results[0].group, any(r.test.over == "seeds" for r in results)
    seeds = ("IQM", "sd of seeds", "sd of tasks") if several else ()
    costs = ("outer steps", "time", "inner gradients")
    columns = ("algorithm", "test", "interval over", *seeds, "best validation", *costs)
    rows = []
    for r in results:
        metric = r.group.metric
        middle, low, high = (_format_number(metric, v) for v in (r.iqm.estimate, r.iqm.low, r.iqm.high))
        iqm = f"{middle} [{low}, {high}]"
        spread = (iqm if math.isfinite(r.iqm.estimate) else NOTHING, *(_format_number(metric, s) for s in r.spread))
        test, validation = (format_interval(metric, interval) for interval in (r.test, r.validation))
        spent = (count(r.steps), duration(r.seconds), count(r.inner_gradients))
        runs = len(r.group.runs)
        over = f"{r.tested} seeds" if r.tested > 1 else "tasks, 1 seed" if r.tested else "not tested"
        over += f", {runs - r.tested} of {runs} without" if 0 < r.tested < runs else ""
        over += f", {r.diverged} diverged" if r.diverged else ""
        over += f", {r.group.repeated} repeated left out" if r.group.repeated else ""
        rows.append((r.group.label, test, over, *(spread if several else ()), validation, *spent))
    note = RESULT_NOTE + (SEEDS_NOTE if several else "")
    note += REPEATED_NOTE if any(r.group.repeated for r in results) else ""
    strong = frozenset((at, 1) for at in _best_results(results))
    title = f"{group.benchmark}, {metric_name(group.metric)}"
    return Table(title, columns, tuple(rows), note, left=(0, 2), strong=strong)


def _best_results(results: Sequence[Result]) -> set[int]:
    """The indices of the best mean of each benchmark that has several."""
    means: dict[str, dict[int, float]] = {}
    for at, r in enumerate(results):
        if math.isfinite(r.test.mean):
            sign = 1 if text.higher_is_better(r.group.metric) else -1
            means.setdefault(r.group.benchmark, {})[at] = sign * r.test.mean
    several = [same for same in means.values() if len(same) > 1]
    return {at for same in several for at, mean in same.items() if mean == max(same.values())}


def _matrix_table(results: Sequence[Result]) -> Table | None:
    """Algorithm x benchmark; None for a single benchmark, where the table of results says it all."""
    benchmarks = {r.group.benchmark: metric_name(r.group.metric) for r in results}
    if len(benchmarks) < 2:
        return None
    labels, names = list(dict.fromkeys(r.group.label for r in results)), list(benchmarks)
    cells = {(r.group.label, r.group.benchmark): format_interval(r.group.metric, r.test) for r in results}
    rows = tuple((label, *(cells.get((label, name), NOTHING) for name in names)) for label in labels)
    best = [results[at].group for at in _best_results(results)]
    strong = frozenset((labels.index(g.label), names.index(g.benchmark) + 1) for g in best)
    columns = ("algorithm", *(f"{name}, {metric}" for name, metric in benchmarks.items()))
    return Table("Algorithms and benchmarks", columns, rows, strong=strong)


def _side_by_side_tables(groups: Sequence[Group]) -> list[Table]:
    """The metrics of groups that were tested on the same episodes, whichever metric each of them reports: a table for
    each set of episodes that a learner of distributions was tested on."""
    by_episodes: dict[str, list[Group]] = {}
    for group in groups:
        by_episodes.setdefault(str(group.runs[0].summary.get("episodes_sha256")), []).append(group)
    tables = []
    for same in by_episodes.values():
        if not any(g.runs[0].summary.get("beside") for g in same):
            continue
        run = same[0].runs[0]
        rows = [(g.label, [metrics_of(run) for run in g.runs]) for g in same]
        best = metric_values(run.summary.get("oracle"))
        rows += [("best possible", [best])] if best else []
        names = [n for n in SIDE_BY_SIDE if any(n in metrics for _, seeds in rows for metrics in seeds)]
        cells = tuple((label, *(format_over_seeds(name, seeds) for name in names)) for label, seeds in rows)
        title = f"All metrics, on the same test tasks: {component(run, 'data')} {episode_size(run)}"
        columns = ("algorithm", *map(name_metric, names))
        tables.append(Table(title, columns, cells, "± as in the table of results."))
    return tables


def pair_tables(benchmarks: Sequence[Sequence[Pair]]) -> list[Table]:
    """The pairs of each benchmark."""
    tables = []
    for pairs in benchmarks:
        rows: list[tuple[str, ...]] = []
        strong: set[tuple[int, int]] = set()
        for pair, found in ((p, p.comparison) for p in pairs if p.comparison):
            difference = format_interval(pair.a.metric, Interval(found.difference, found.half, ""))
            unpaired = _format_number(pair.a.metric, found.unpaired_half)
            shares = (f"{100 * share:.1f} %" for share in (found.wins, found.ties, found.losses))
            if abs(found.difference) > found.half:
                strong.add((len(rows), 2))
            cells = (difference.replace(" %", " points"), unpaired, *shares, count(found.n))
            rows.append((pair.a.label, pair.b.label, *cells))
        columns = ("A", "B", "A \N{MINUS SIGN} B", "± if unpaired", "A better", "equal", "B better", "tasks")
        title = f"Paired differences: {pairs[0].a.benchmark}, {metric_name(pairs[0].a.metric)}"
        table = Table(title, columns, tuple(rows), PAIR_NOTE, left=(0, 1), strong=frozenset(strong))
        tables += [table] if rows else []
    return tables


def apart_tables(groups: Sequence[Group]) -> list[Table]:
    """For each benchmark the groups that compare with no other task by task, and why."""
    tables = []
    for benchmark, members in by_benchmark(groups).items():
        apart = set_apart(members) if len(members) > 1 else {}
        rows = tuple((", ".join(labels), reason) for reason, labels in apart.items())
        title = f"Not comparable task by task: {benchmark}"
        tables += [Table(title, ("algorithms", "reason"), rows, left=(0, 1))] if rows else []
    return tables


def budget_tables(groups: Sequence[Group]) -> list[Table]:
    """The best validation of each group within the least that any of them spent, in several units."""
    tables, none = [], Interval(math.nan, math.nan, "")
    for benchmark, members in by_benchmark(groups).items():
        budgets = equal_compute(members) if len(members) > 1 else []
        if budgets:
            metric = members[0].metric
            amounts = (duration(b.amount) if b.unit == "seconds" else f"{count(b.amount)} {b.unit}" for b in budgets)
            columns = ("algorithm", *(f"within {amount}" for amount in amounts))
            best = [(g.label, [b.best.get(g.label, none) for b in budgets]) for g in members]
            rows = tuple((label, *(format_interval(metric, i) for i in intervals)) for label, intervals in best)
            tables.append(Table(f"At equal compute: {benchmark}, {metric_name(metric)}", columns, rows, BUDGET_NOTE))
    return tables


def metric_with_unit(metric: str) -> str:
    return f"{metric} ({text.display_unit(metric)})" if text.display_unit(metric) else metric


def raw_results(results: Sequence[Result]) -> Table:
    """Numbers in full, in display units (per cent for an accuracy), for other programs."""
    rows = []
    for r in results:
        who = (r.group.label, r.group.benchmark, metric_with_unit(r.group.metric), len(r.group.runs), r.group.repeated)
        reached = (r.tested, r.diverged, *r.test, *r.iqm, *r.spread, r.validation.mean)
        rows.append((*who, *reached, r.steps, r.seconds, r.inner_gradients))
    return raw_table(RAW_RESULT, rows)


def raw_pairs(pairs: Sequence[Pair]) -> Table:
    rows = [(p.a.benchmark, p.a.label, p.b.label, *(p.comparison or [math.nan] * 7), p.why) for p in pairs]
    return raw_table(RAW_PAIR, rows)


def raw_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table of numbers as Python writes them; empty where they are not finite."""
    cells = (["" if isinstance(v, float) and not math.isfinite(v) else str(v) for v in row] for row in rows)
    return Table("", tuple(columns), tuple(map(tuple, cells)))
