"""What a sweep found, as tables and sentences: the swept settings, the best of them, the jobs without a result.

`sweep_text` is for a terminal; its imports include neither torch nor hydra nor matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from metarun.errors import one_line
from metarun.report.compare.groups import Group, group_runs
from metarun.report.compare.results import best_validation, interval_of, test_interval
from metarun.report.compare.sweep import Axis, Benchmark, Sweep, collect_sweep, format_value, format_values
from metarun.report.read.facts import seed_of
from metarun.report.read.jobs import Job, find_jobs, list_jobs, rerun_command
from metarun.report.read.runs import read_run
from metarun.report.tables.comparison import format_interval, metric_with_unit, raw_table
from metarun.report.tables.table import Table, to_text
from metarun.storage.text import NOTHING, format_metric, is_number, metric_name

NOTE = (
    "Best first, by the mean over seeds of each run's best validation; test metrics play no part in the order. "
    "± is half of a 95 % interval over seeds (Student's t), for a single seed over test tasks. Means are over "
    "the runs that completed. A combination in which a larger share of runs diverged or failed is listed lower."
)
RAW = (
    "benchmark", "metric", "rank", "seeds", "best_validation", "best_validation_half", "test", "test_half",
    "test_interval_over", "diverged", "failed", "not_finite", "unfinished", "command",
)  # fmt: skip
MAX_LINES = 20  # of a table on a terminal
WIDTH = 100


class Best(NamedTuple):
    """The best configuration of a benchmark in a sentence, and the command that runs it again."""

    sentence: str
    command: str
    purpose: str  # of the command


def sweep_tables(sweep: Sweep | None, jobs: Sequence[Job]) -> list[Table]:
    """The swept settings of each benchmark, then the jobs without a result."""
    settings = [settings_table(sweep.axes, b) for b in sweep.benchmarks] if sweep else []
    lost = lost_table(sweep, jobs)
    return [*settings, *([lost] if lost else [])]


def settings_table(axes: Sequence[Axis], benchmark: Benchmark, most: int | None = None) -> Table:
    """A row for each combination of swept settings, at most `most`."""
    rows = []
    for row in benchmark.rows[:most]:
        seeds = len(row.completed)
        over = {"seeds": f"{seeds} seeds", "tasks": "tasks, 1 seed"}.get(row.test.over, NOTHING)
        reached = tuple(format_interval(benchmark.metric, interval) for interval in (row.validation, row.test))
        lost = ", ".join(f"{number} {status}" for status, number in row.lost.items()) or "0"
        rows.append((*map(format_value, row.values), str(seeds), *reached, over, lost))
    more = len(benchmark.rows) - len(rows)
    note = f"{NOTE} {more} more rows are in --format csv." if more else NOTE
    left = (*(at for at, a in enumerate(axes) if not a.numeric), len(axes) + 3, len(axes) + 4)
    strong = frozenset({(0, len(axes) + 1)} if benchmark.best and len(benchmark.rows) > 1 else ())
    columns = (*(a.name for a in axes), "seeds", "best validation", "test", "interval over", "no result")
    return Table(f"Swept settings: {_title(benchmark)}", columns, tuple(rows), note, left=left, strong=strong)


def _title(benchmark: Benchmark) -> str:
    return f"{benchmark.name}, {metric_name(benchmark.metric)}"


def best_configurations(sweep: Sweep) -> list[Best]:
    """The best configuration of each benchmark that has one."""
    found = []
    for benchmark in sweep.benchmarks:
        row = benchmark.best
        if row is None or len(benchmark.rows) < 2:
            continue
        name, seeds = metric_name(benchmark.metric), len(row.completed)
        over = "1 seed" if seeds == 1 else f"mean of {seeds} seeds"
        where = f" on {benchmark.name}" if len(sweep.benchmarks) > 1 else ""
        validation, test = (format_interval(benchmark.metric, interval) for interval in (row.validation, row.test))
        tested = f"; its test {name} is {test}" if math.isfinite(row.test.mean) else ""
        sentence = (
            f"Best configuration{where}: {format_values(sweep.axes, row.values)}, validation {name} {validation} "
            f"({over}). It was chosen by validation alone{tested}."
        )
        first = row.first_job
        others = ", ".join(job.seed for job in row.completed if job.seed != first.seed)
        purpose = f"To repeat it with seed {first.seed}" if first.seed else "To repeat it"
        found.append(Best(sentence, rerun_command(first), f"{purpose} (other seeds: {others})" if others else purpose))
    return found


def lost_table(sweep: Sweep | None, jobs: Sequence[Job]) -> Table | None:
    """The jobs that failed, diverged or have not ended, and why. None without any, and for runs that are no sweep."""
    lost = [job for job in jobs if not job.succeeded]
    if not lost or not (sweep or any(job.recorded for job in jobs)):
        return None
    combinations = {}
    if sweep:
        found = [row for b in sweep.benchmarks for row in b.rows]
        combinations = {job.path: format_values(sweep.axes, row.values) for row in found for job in row.jobs}
    rows = []
    for job in lost:
        settings = " ".join(filter(None, (combinations.get(job.path), f"seed={job.seed}" if job.seed else "")))
        rows.append((job.path.name, settings, job.status, one_line(job.reason or NOTHING)))
    return Table("Jobs without a result", ("job", "settings", "status", "reason"), tuple(rows), left=(0, 1, 2, 3))


def raw_sweep(sweep: Sweep) -> Table:
    """Numbers in full, in the unit of `metric`, for other programs."""
    rows = []
    for benchmark in sweep.benchmarks:
        for rank, row in enumerate(benchmark.rows, 1):
            lost = dict(row.lost)
            ended = [lost.pop(status, 0) for status in ("diverged", "failed", "not finite")]
            rows.append((
                *row.values, benchmark.name, metric_with_unit(benchmark.metric), rank, len(row.completed),
                row.validation.mean, row.validation.half, *row.test, *ended, sum(lost.values()),
                rerun_command(row.first_job),
            ))  # fmt: skip
    return raw_table((*(a.name for a in sweep.axes), *RAW), rows)


def sweep_text(folder: Path) -> list[str]:
    """Return the sweep in a folder as plain text: a table of at most 100 columns, then the best configuration.

    Of runs that differ in nothing but their seed, the mean over seeds. Raise `UserError` if there is no run and no job.
    """
    paths, others = find_jobs(folder)
    runs = [read_run(path) for path in paths]
    sweep = collect_sweep(list_jobs(runs, others))
    if sweep is None:
        return [line for group in group_runs(runs) for line in describe_seeds(group)]
    lines = []
    for benchmark in sweep.benchmarks:
        table = _drop_column(settings_table(sweep.axes, benchmark, MAX_LINES), "interval over")
        more = len(benchmark.rows) - len(table.rows)
        lines += [
            f"{_title(benchmark)}, best validation first; ± 95 % over seeds, of one seed over test tasks",
            *to_text(table, WIDTH),
            *([f"... and {more} more in the report"] if more else []),
            "",
        ]
    for best in best_configurations(sweep):
        lines += [best.sentence, *([f"{best.purpose}:", f"  {best.command}"] if best.command else [])]
    return lines


def describe_seeds(group: Group) -> list[str]:
    """Mean and interval over the seeds of a group, and the metric of each; no lines for fewer than two tested seeds."""
    metric, tested = group.metric, [run for run in group.runs if is_number(run.summary.get("mean"))]
    if len(tested) < 2:
        return []
    name = metric_name(metric)
    validation, test = interval_of(list(map(best_validation, tested))), test_interval(tested, metric)
    found = f"test {name} {format_interval(metric, test)}, best validation {format_interval(metric, validation)}"
    each = (f"{seed_of(run)}: {format_metric(metric, run.summary['mean'], unit=False)}" for run in tested[:MAX_LINES])
    return [
        f"{group.label} on {group.benchmark}, {len(tested)} seeds: {found} (95 % intervals over seeds, Student's t)",
        f"test {name} by seed: {', '.join(each)}{', ...' if len(tested) > MAX_LINES else ''}",
    ]


def _drop_column(table: Table, name: str) -> Table:
    gone = table.columns.index(name)
    rows = tuple(row[:gone] + row[gone + 1 :] for row in table.rows)
    left = tuple(at - (at > gone) for at in table.left if at != gone)
    return Table(table.title, table.columns[:gone] + table.columns[gone + 1 :], rows, table.note, left)
