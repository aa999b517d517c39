"""The combinations of swept settings: what each reached over its seeds, best first, and which is the best.

A figure is that of the runs that completed. Leaving out the others flatters a combination of which some runs diverged,
so that it stands below those that lost none, or a smaller share. The order, and so the best, is by validation alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from metarun.report.compare.axes import Axis, Value, axes_of
from metarun.report.compare.groups import benchmarks
from metarun.report.compare.results import NAN, Interval, best_validation, interval_of
from metarun.report.read.facts import metric_of
from metarun.report.read.jobs import LOST, Job
from metarun.report.read.runs import Run
from metarun.storage.text import display_scale, higher_is_better, is_number, metric_from_error

OF_THE_DATA = ("data", "experiment")
UNKNOWN = "benchmark unknown"


class Row(NamedTuple):
    """One combination of swept settings, its jobs one a seed."""

    values: tuple[Value, ...]
    jobs: tuple[Job, ...]
    metric: str
    validation: Interval  # best of each run that completed, in the unit that is shown
    test: Interval
    lost: tuple[tuple[str, int], ...]  # runs without a figure, by how they ended

    @property
    def completed(self) -> list[Job]:
        return [job for job in self.jobs if job.succeeded]

    @property
    def number_lost(self) -> int:
        """Of the runs that ended, those that diverged or failed."""
        return sum(number for status, number in self.lost if status in LOST)

    @property
    def share_lost(self) -> float:
        return self.number_lost / max(1, self.number_lost + len(self.completed))


class Benchmark(NamedTuple):
    """The rows that compare with each other, best first."""

    name: str
    metric: str
    rows: tuple[Row, ...]

    @property
    def best(self) -> Row | None:
        """By validation; None where no run was validated."""
        return self.rows[0] if math.isfinite(self.rows[0].validation.mean) else None


@dataclass(frozen=True)
class Swept:
    """The swept settings and what came of them."""

    axes: tuple[Axis, ...]
    benchmarks: tuple[Benchmark, ...]

    def varied(self, benchmark: Benchmark) -> list[int]:
        """The places of the axes that have several values on this benchmark."""
        return [at for at in range(len(self.axes)) if len({row.values[at] for row in benchmark.rows}) > 1]


def swept(jobs: Sequence[Job]) -> Swept | None:
    """None where the runs differ in nothing but their seed, or have so little in common that they are no sweep."""
    axes, values = axes_of(jobs)
    if not axes:
        return None
    members: dict[tuple[Value, ...], list[Job]] = {}
    for job, own in zip(jobs, values, strict=True):
        members.setdefault(own, []).append(job)
    names = _names(axes, members)
    found = [
        _benchmark(name, {v: members[v] for v in members if names[v] == name}) for name in dict.fromkeys(names.values())
    ]
    return Swept(tuple(axes), tuple(found)) if any(len(b.rows) > 1 for b in found) else None


def _benchmark(name: str, members: Mapping[tuple[Value, ...], Sequence[Job]]) -> Benchmark:
    metrics = [metric_of(job.run) for jobs in members.values() for job in jobs if job.run]
    metric = next((m for m in metrics if m != "figure"), "figure")
    rows = [_row(values, jobs, metric) for values, jobs in members.items()]
    return Benchmark(name, metric, tuple(sorted(rows, key=_rank)))


def _rank(row: Row) -> tuple[bool, float, float]:
    mean = row.validation.mean
    return not math.isfinite(mean), row.share_lost, -mean if higher_is_better(row.metric) else mean


def _row(values: tuple[Value, ...], jobs: Sequence[Job], metric: str) -> Row:
    kept = _one_a_seed(jobs)
    runs = [job.run for job in kept if job.run and job.succeeded]
    validations = [v for v in map(validation_of, runs) if math.isfinite(v)]
    tested = [r for r in runs if is_number(r.summary.get("mean"))]
    scale = display_scale(metric)
    half = tested[0].summary.get("ci95") if len(tested) == 1 else None
    return Row(
        values,
        kept,
        metric,
        interval_of(validations, NAN),
        interval_of([scale * r.summary["mean"] for r in tested], scale * half if is_number(half) else NAN),
        tuple(Counter(job.status for job in kept if not job.succeeded).items()),
    )


def validation_of(run: Run) -> float:
    """The run's best validation in the unit that is shown: of its records, or as its summary has it."""
    best, error, metric = best_validation(run), run.summary.get("val_error"), metric_of(run)
    if math.isfinite(best) or not is_number(error):
        return best
    return display_scale(metric) * metric_from_error(metric, error)


def _one_a_seed(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """One job of each seed: of several, the first that completed, else the first."""
    seeds: dict[str, Job] = {}
    for job in jobs:
        if job.seed not in seeds or (job.succeeded and not seeds[job.seed].succeeded):
            seeds[job.seed] = job
    return tuple(seeds[seed] for seed in sorted(seeds, key=lambda s: (not s.isdecimal(), s.zfill(20))))


def _names(axes: Sequence[Axis], members: Mapping[tuple[Value, ...], Sequence[Job]]) -> dict[tuple[Value, ...], str]:
    """Each combination's benchmark. One without a run has that of the same data."""
    of_run = {run.path: name for name, runs in benchmarks(_runs(members)).items() for run in runs}
    of_data = [at for at, axis in enumerate(axes) if axis.name.partition(".")[0].partition("/")[0] in OF_THE_DATA]
    known = {v: of_run[j.run.path] for v, jobs in members.items() for j in jobs if j.run and j.run.path in of_run}
    alike = {tuple(values[at] for at in of_data): name for values, name in known.items()}
    rest = next(iter(known.values())) if len(set(known.values())) == 1 else UNKNOWN
    return {v: known.get(v) or alike.get(tuple(v[at] for at in of_data), rest) for v in members}


def _runs(members: Mapping[tuple[Value, ...], Sequence[Job]]) -> list[Run]:
    return [job.run for jobs in members.values() for job in jobs if job.run and job.run.config]
