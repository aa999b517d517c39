"""The tables of several runs: results, pairs, equal compute. Of each the cells to read; of two also raw numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from metarun.report.compare.groups import Group, by_benchmark
from metarun.report.compare.results import Budget, Interval, Pair, Result
from metarun.report.tables.table import Table
from metarun.storage.text import (
    NOTHING,
    count,
    display_scale,
    display_unit,
    duration,
    format_metric,
    higher_is_better,
    metric_name,
)

RESULT_NOTE = (
    "± is half of a 95 % interval: over test tasks (1.96 standard errors) for one seed, over seeds (Student's t) for "
    "several. Bold: best mean of its benchmark; the difference from the next may be chance."
)
SEEDS_NOTE = (
    " IQM: mean of the middle half of the seeds' means, with a 95 % bootstrap interval, which is too short for fewer "
    "than ten seeds. sd of seeds and of tasks: roots of the components of the scores' variance."
)
PAIR_NOTE = (
    "Differences task by task on the same test episodes, several seeds averaged first; ± is half of a 95 % interval "
    "for these trained weights on new tasks, not for new seeds. Bold: the interval leaves out 0; not corrected for the "
    "number of pairs."
)
BUDGET_NOTE = (
    "Best validation within the smallest amount that a run of this benchmark spent; a dash: it spends none of it, "
    "or was not validated within it. ± is Student's t over seeds. A best of several flatters, and flatters all."
)
RAW_RESULT = (
    "algorithm", "benchmark", "metric", "runs", "tested", "diverged", "mean", "half", "interval_over", "iqm", "iqm_low",
    "iqm_high", "sd_seeds", "sd_tasks", "best_validation", "outer_steps", "seconds", "inner_gradients",
)  # fmt: skip
RAW_PAIR = (
    "benchmark", "a", "b", "difference", "half", "unpaired_half", "wins", "ties", "losses", "tasks", "not_comparable",
)  # fmt: skip


def estimate(metric: str, interval: Interval) -> str:
    """`90.15 ± 0.56 %` of an interval in the unit that is shown."""
    scale = display_scale(metric)
    return format_metric(metric, interval.mean / scale, interval.half / scale)


def result_table(results: Sequence[Result]) -> Table:
    """Of one benchmark, a row for each group: what it reached, on how many seeds, at what cost."""
    group, several = results[0].group, any(r.test.over == "seeds" for r in results)
    seeds = ("IQM", "sd of seeds", "sd of tasks") if several else ()
    columns = (
        "algorithm",
        "test",
        "interval over",
        *seeds,
        "best validation",
        "outer steps",
        "time",
        "inner gradients",
    )
    rows = tuple(_result_row(r, several) for r in results)
    note = RESULT_NOTE + (SEEDS_NOTE if several else "")
    title = f"{group.benchmark}, {metric_name(group.metric)}"
    return Table(title, columns, rows, note, left=(0, 2), strong=_best_cells(results, column=1))


def _result_row(r: Result, several: bool) -> tuple[str, ...]:
    metric = r.group.metric
    iqm = f"{_plain(metric, r.iqm.estimate)} [{_plain(metric, r.iqm.low)}, {_plain(metric, r.iqm.high)}]"
    seeds = (iqm if math.isfinite(r.iqm.estimate) else NOTHING, *(_plain(metric, s) for s in r.spread))
    return (
        r.group.label,
        estimate(metric, r.test),
        _over(r),
        *(seeds if several else ()),
        estimate(metric, r.validation),
        _whole(r.steps),
        duration(r.seconds),
        _whole(r.inner_gradients),
    )


def _over(r: Result) -> str:
    runs = len(r.group.runs)
    tested = f"{r.tested} seeds" if r.tested > 1 else "tasks, 1 seed" if r.tested else "no test figure"
    lost = f", {runs - r.tested} of {runs} without" if 0 < r.tested < runs else ""
    return tested + lost + (f", {r.diverged} diverged" if r.diverged else "")


def _best_cells(results: Sequence[Result], column: int) -> frozenset[tuple[int, int]]:
    """The best mean of each benchmark that has several."""
    best = set()
    for benchmark in {r.group.benchmark for r in results}:
        same = [(at, r) for at, r in enumerate(results) if r.group.benchmark == benchmark]
        rows = [(at, r) for at, r in same if math.isfinite(r.test.mean)]
        if len(rows) > 1:
            sign = 1 if higher_is_better(rows[0][1].group.metric) else -1
            top = max(sign * r.test.mean for _, r in rows)
            best |= {(at, column) for at, r in rows if sign * r.test.mean == top}
    return frozenset(best)


def matrix_table(results: Sequence[Result]) -> Table | None:
    """Algorithm x benchmark; None for a single benchmark, where the table of results says it all."""
    benchmarks = list(by_benchmark([r.group for r in results]))
    labels = list(dict.fromkeys(r.group.label for r in results))
    if len(benchmarks) < 2:
        return None
    found = {(r.group.label, r.group.benchmark): r for r in results}
    metrics = {r.group.benchmark: r.group.metric for r in results}
    cells = {key: estimate(r.group.metric, r.test) for key, r in found.items()}
    rows = tuple((label, *(cells.get((label, b), NOTHING) for b in benchmarks)) for label in labels)
    best = {(results[at].group.label, results[at].group.benchmark) for at, _ in _best_cells(results, 0)}
    strong = {(labels.index(label), benchmarks.index(b) + 1) for label, b in best}
    columns = ("algorithm", *(f"{b}, {metric_name(metrics[b])}" for b in benchmarks))
    return Table("Algorithms and benchmarks", columns, rows, strong=frozenset(strong))


def pair_table(pairs: Sequence[Pair]) -> Table | None:
    """The pairs that can be compared."""
    shown = [pair for pair in pairs if pair.comparison]
    if not shown:
        return None
    columns = ("A", "B", "A \N{MINUS SIGN} B", "± if unpaired", "A better", "the same", "B better", "tasks")
    strong = frozenset((at, 2) for at, p in enumerate(shown) if _resolved(p))
    title = f"Paired differences: {shown[0].a.benchmark}, {metric_name(shown[0].a.metric)}"
    return Table(title, columns, tuple(_pair_row(p) for p in shown), PAIR_NOTE, left=(0, 1), strong=strong)


def apart_table(pairs: Sequence[Pair]) -> Table | None:
    """The pairs that cannot, and why."""
    rows = tuple((p.a.label, p.b.label, p.why) for p in pairs if p.comparison is None)
    title = f"Not comparable task by task: {pairs[0].a.benchmark}" if rows else ""
    return Table(title, ("A", "B", "since"), rows, left=(0, 1, 2)) if rows else None


def _resolved(pair: Pair) -> bool:
    return pair.comparison is not None and abs(pair.comparison.difference) > pair.comparison.half


def _pair_row(pair: Pair) -> tuple[str, ...]:
    found, metric = pair.comparison, pair.a.metric
    assert found is not None
    shares = (f"{100 * share:.1f} %" for share in (found.wins, found.ties, found.losses))
    difference = estimate(metric, Interval(found.difference, found.half, "")).replace(" %", " points")
    return (pair.a.label, pair.b.label, difference, _plain(metric, found.unpaired_half), *shares, count(found.n))


def budget_table(budgets: Sequence[Budget], groups: Sequence[Group]) -> Table:
    """The best validation of each group within the least that any of them spent, in several units."""
    columns = ("algorithm", *(f"within {_amount(b)}" for b in budgets))
    metric, none = groups[0].metric, Interval(math.nan, math.nan, "")
    rows = tuple((g.label, *(estimate(metric, b.best.get(g.label, none)) for b in budgets)) for g in groups)
    return Table(f"At equal compute: {groups[0].benchmark}, {metric_name(metric)}", columns, rows, BUDGET_NOTE)


def _amount(budget: Budget) -> str:
    return duration(budget.amount) if budget.unit == "seconds" else f"{count(budget.amount)} {budget.unit}"


def raw_results(results: Sequence[Result]) -> Table:
    """Numbers in full, in the unit of `mean` (per cent for an accuracy), for other programs."""
    rows = tuple(raw(_raw_result(r)) for r in results)
    return Table("results", RAW_RESULT, rows)


def _raw_result(r: Result) -> tuple[Any, ...]:
    unit = f"{r.group.metric}{' (' + display_unit(r.group.metric) + ')' if display_unit(r.group.metric) else ''}"
    who = (r.group.label, r.group.benchmark, unit, len(r.group.runs), r.tested, r.diverged)
    return (*who, *r.test, *r.iqm, *r.spread, r.validation.mean, r.steps, r.seconds, r.inner_gradients)


def raw_pairs(pairs: Sequence[Pair]) -> Table:
    rows = [(p.a.benchmark, p.a.label, p.b.label, *(p.comparison or [math.nan] * 7), p.why) for p in pairs]
    return Table("pairs", RAW_PAIR, tuple(raw(row) for row in rows))


def raw(row: Sequence[Any]) -> tuple[str, ...]:
    return tuple("" if isinstance(v, float) and not math.isfinite(v) else str(v) for v in row)


def _plain(metric: str, value: float) -> str:
    return format_metric(metric, value / display_scale(metric), unit=False)


def _whole(value: float) -> str:
    return NOTHING if math.isnan(value) else count(value)
