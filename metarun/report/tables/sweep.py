"""What a sweep found, as tables and sentences: the swept settings, the best of them, the runs that came to nothing.

Nothing here draws; `sweep_text` is for a terminal and imports neither torch nor hydra nor matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metarun.errors import one_line
from metarun.report.compare.axes import Axis, in_words, shown
from metarun.report.compare.combinations import Benchmark, Row, Swept, swept
from metarun.report.read.jobs import Job, command, found_in, jobs_of
from metarun.report.read.runs import read_run
from metarun.report.tables.comparison import estimate, raw
from metarun.report.tables.table import Table, to_text
from metarun.storage.text import NOTHING, display_unit, metric_name

NOTE = (
    "Best first, by the best validation of each run, as a mean over seeds; test figures played no part in the order. "
    "± is half of a 95 % interval over seeds (Student's t), for a single seed over test tasks. Figures are of the runs "
    "that completed: a combination of which some diverged or failed stands below those that lost fewer."
)
RAW = (
    "benchmark", "metric", "rank", "seeds", "best_validation", "best_validation_half", "test", "test_half",
    "test_interval_over", "diverged", "failed", "not_finite", "unfinished", "command",
)  # fmt: skip
MOST_ROWS, MOST_LINES = 60, 20  # of a table on a page, and on a terminal
WIDTH = 100


class Best(NamedTuple):
    """The best configuration of a benchmark in a sentence, and the command that runs it again."""

    sentence: str
    command: str
    what: str  # the command is for


def tables_of(found: Swept | None, jobs: Sequence[Job]) -> list[Table]:
    """The swept settings of each benchmark, then the jobs without a result."""
    settings = [swept_table(found.axes, b) for b in found.benchmarks] if found else []
    lost = lost_table(found, jobs)
    return [*settings, *([lost] if lost else [])]


def swept_table(axes: Sequence[Axis], benchmark: Benchmark, most: int | None = None) -> Table:
    """A row for each combination of swept settings."""
    columns = (*(a.name for a in axes), "seeds", "best validation", "test", "interval over", "no result")
    rows = tuple(_cells(row) for row in benchmark.rows[:most])
    more = len(benchmark.rows) - len(rows)
    note = f"{NOTE} {more} more rows are in --format csv." if more else NOTE
    words = (*(at for at, a in enumerate(axes) if not a.numeric), len(axes) + 3, len(axes) + 4)
    strong = frozenset({(0, len(axes) + 1)} if benchmark.best and len(benchmark.rows) > 1 else ())
    return Table(f"Swept settings: {_title(benchmark)}", columns, rows, note, left=words, strong=strong)


def _title(benchmark: Benchmark) -> str:
    return f"{benchmark.name}, {metric_name(benchmark.metric)}"


def _cells(row: Row) -> tuple[str, ...]:
    over = {"seeds": f"{len(row.completed)} seeds", "tasks": "tasks, 1 seed"}.get(row.test.over, NOTHING)
    return (
        *map(shown, row.values),
        str(len(row.completed)),
        estimate(row.metric, row.validation),
        estimate(row.metric, row.test),
        over,
        ", ".join(f"{number} {status}" for status, number in row.lost) or "0",
    )


def bests(found: Swept) -> list[Best]:
    """The best configuration of each benchmark that has one."""
    return [_best(found, b, b.best) for b in found.benchmarks if b.best and len(b.rows) > 1]


def _best(found: Swept, benchmark: Benchmark, row: Row) -> Best:
    """In words. The command is that of the first seed: to take the best one would be to choose by luck."""
    name = metric_name(row.metric)
    seeds = "1 seed" if len(row.completed) == 1 else f"mean of {len(row.completed)} seeds"
    where = f" on {benchmark.name}" if len(found.benchmarks) > 1 else ""
    tested = f"; its test {name} is {estimate(row.metric, row.test)}" if math.isfinite(row.test.mean) else ""
    sentence = (
        f"Best configuration{where}: {in_words(found.axes, row.values)}, validation {name} "
        f"{estimate(row.metric, row.validation)} ({seeds}). It was chosen by validation alone{tested}."
    )
    first = next((job for job in row.completed if job.run), row.jobs[0])
    others = [job.seed for job in row.completed if job.seed != first.seed]
    what = f"this configuration again, seed {first.seed}" if first.seed else "this configuration again"
    return Best(sentence, command(first), f"{what} (the others: {', '.join(others)})" if others else what)


def lost_table(found: Swept | None, jobs: Sequence[Job]) -> Table | None:
    """The jobs that failed, diverged or have not ended, and why. None without any, and for runs that are no sweep."""
    lost = [job for job in jobs if not job.succeeded]
    if not lost or not (found or any(job.recorded for job in jobs)):
        return None
    rows = tuple((job.path.name, _words(found, job), job.status, one_line(job.reason or NOTHING)) for job in lost)
    return Table("Jobs without a result", ("job", "settings", "status", "reason"), rows, left=(0, 1, 2, 3))


def _words(found: Swept | None, job: Job) -> str:
    seed = f"seed={job.seed}" if job.seed else ""
    if found is None:
        return seed
    of_job = [row for b in found.benchmarks for row in b.rows if any(j.path == job.path for j in row.jobs)]
    return " ".join(filter(None, (in_words(found.axes, of_job[0].values) if of_job else "", seed)))


def raw_swept(found: Swept) -> Table:
    """Numbers in full, in the unit of `metric`, for other programs."""
    rows = [_raw_row(b, rank, row) for b in found.benchmarks for rank, row in enumerate(b.rows, 1)]
    return Table("swept", (*(a.name for a in found.axes), *RAW), tuple(raw(row) for row in rows))


def _raw_row(benchmark: Benchmark, rank: int, row: Row) -> tuple[Any, ...]:
    lost = dict(row.lost)
    ended = [lost.pop(status, 0) for status in ("diverged", "failed", "not finite")]
    unit = f"{row.metric} ({display_unit(row.metric)})" if display_unit(row.metric) else row.metric
    first = next((job for job in row.completed if job.run), row.jobs[0])
    return (
        *row.values, benchmark.name, unit, rank, len(row.completed), row.validation.mean, row.validation.half,
        *row.test, *ended, sum(lost.values()), command(first),
    )  # fmt: skip


def sweep_text(folder: Path) -> list[str]:
    """The sweep in a folder as plain text: a table of at most 100 columns, then the best configuration's command.

    No lines where its runs differ in nothing but their seed; `UserError` where there is neither a run nor a job.
    """
    paths, others = found_in(folder)
    found = swept(jobs_of([read_run(path) for path in paths], others))
    if found is None:
        return []
    lines = [line for b in found.benchmarks for line in _text(found, b)]
    for best in bests(found):
        lines += [best.sentence, *([f"{best.what}:", f"  {best.command}"] if best.command else [])]
    return lines


def _text(found: Swept, benchmark: Benchmark) -> list[str]:
    table = swept_table(found.axes, benchmark, MOST_LINES)
    more = len(benchmark.rows) - len(table.rows)
    return [
        f"{_title(benchmark)}, best validation first; ± 95 % over seeds, of one seed over test tasks",
        *to_text(without_column(table, "interval over"), WIDTH),
        *([f"... and {more} more in the report"] if more else []),
        "",
    ]


def without_column(table: Table, name: str) -> Table:
    """The table less a column whose content is said elsewhere."""
    gone = table.columns.index(name)
    rows = tuple(row[:gone] + row[gone + 1 :] for row in table.rows)
    left = tuple(at - (at > gone) for at in table.left if at != gone)
    return Table(table.title, table.columns[:gone] + table.columns[gone + 1 :], rows, table.note, left)
