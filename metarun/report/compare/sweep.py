"""The settings in which runs differ, and what each combination of them reached over its seeds.

A setting is named as a user types it: `algo`, `algo.inner_lr`. If the overrides of all runs are known, the settings are
their keys; a run without an override has the value in its configuration. Otherwise (a run started from Python) they
are the groups whose choice differs, and the settings that differ among runs of the same choices.

Combinations are ordered by validation alone, best first. The mean of one is over the runs that completed. Leaving out
the others flatters a combination in which some runs diverged, so the share of runs lost comes first in the order.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from metarun.report.compare.groups import benchmarks, is_irrelevant, one_of_each_seed
from metarun.report.compare.results import Interval, best_validation, interval_of, test_interval
from metarun.report.read.facts import UNKNOWN_METRIC, metric_of, setting
from metarun.report.read.files import as_mapping
from metarun.report.read.jobs import LOST, Job
from metarun.report.read.runs import Run
from metarun.storage.json_values import flatten_keys
from metarun.storage.text import NOTHING, display_scale, higher_is_better, is_number, metric_from_error, number, shorten

NOT_SWEPT = ("seed", "hydra", "sweep", "report", "resume", "logger", "trusted_modules")
MAX_UNRELATED = 6  # settings in which runs without a sweep may differ and still be shown as one
DATA_SETTINGS = ("data", "experiment")
UNKNOWN = "benchmark unknown"

Value = float | int | str
Values = tuple[Value, ...]
MISSING = ""


class Axis(NamedTuple):
    """A setting and its values: numbers ascending, or words in the order of their first appearance."""

    name: str
    values: Values

    @property
    def numeric(self) -> bool:
        return not any(isinstance(v, str) for v in self.values)

    @property
    def logarithmic(self) -> bool:
        """Whether the values are positive numbers over more than a decade."""
        return self.numeric and spans_decade(float(self.values[0]), float(self.values[-1]))

    def restrict(self, values: Sequence[Value]) -> Axis:
        """The axis with those of its values that are among these."""
        return self._replace(values=tuple(v for v in self.values if v in set(values)))


class Row(NamedTuple):
    """One combination of swept settings, its jobs one for each seed."""

    values: Values
    jobs: tuple[Job, ...]
    validation: Interval  # best of each run that completed, in display units
    test: Interval

    @property
    def completed(self) -> list[Job]:
        return [job for job in self.jobs if job.succeeded]

    @property
    def lost(self) -> Counter[str]:
        """The number of runs without a result, by status."""
        return Counter(job.status for job in self.jobs if not job.succeeded)

    @property
    def number_lost(self) -> int:
        """Of the runs that ended, those that diverged or failed."""
        return sum(job.status in LOST for job in self.jobs)

    @property
    def share_lost(self) -> float:
        return self.number_lost / max(1, self.number_lost + len(self.completed))

    @property
    def validated(self) -> bool:
        return math.isfinite(self.validation.mean)

    @property
    def first_job(self) -> Job:
        """The job of the first seed that completed: to take the best seed would be to choose by luck."""
        return next((job for job in self.completed if job.run), self.jobs[0])


class Benchmark(NamedTuple):
    """The rows that compare with each other, best first."""

    name: str
    metric: str
    rows: tuple[Row, ...]

    @property
    def best(self) -> Row | None:
        """By validation; None if no run was validated."""
        return self.rows[0] if self.rows[0].validated else None


@dataclass(frozen=True)
class Sweep:
    """The swept settings and the results of their combinations."""

    axes: tuple[Axis, ...]
    benchmarks: tuple[Benchmark, ...]

    def varied_axes(self, benchmark: Benchmark) -> list[int]:
        """The indices of the axes that have several values on this benchmark."""
        return [at for at in range(len(self.axes)) if len({row.values[at] for row in benchmark.rows}) > 1]


def collect_sweep(jobs: Sequence[Job]) -> Sweep | None:
    """Return the sweep of these jobs; None if they differ in nothing but their seed, or seem to be unrelated."""
    axes, values = find_axes(jobs)
    members: dict[Values, list[Job]] = {}
    for job, own in zip(jobs, values, strict=True) if axes else ():
        members.setdefault(own, []).append(job)
    names = _name_benchmarks(axes, members)
    found = []
    for name in dict.fromkeys(names.values()):
        rows = {v: members[v] for v in members if names[v] == name}
        metrics = [metric_of(job.run) for own in rows.values() for job in own if job.run]
        metric = next((m for m in metrics if m != UNKNOWN_METRIC), UNKNOWN_METRIC)
        sign = -1 if higher_is_better(metric) else 1
        best_first = sorted(
            (_build_row(values, rows[values], metric) for values in rows),
            key=lambda row: (not row.validated, row.share_lost, sign * row.validation.mean),
        )
        found.append(Benchmark(name, metric, tuple(best_first)))
    return Sweep(tuple(axes), tuple(found)) if any(len(b.rows) > 1 for b in found) else None


def _build_row(values: Values, jobs: Sequence[Job], metric: str) -> Row:
    kept = one_of_each_seed(jobs, attrgetter("seed"), attrgetter("succeeded"))
    kept = tuple(sorted(kept, key=lambda job: (not job.seed.isdecimal(), job.seed.zfill(20))))
    runs = [job.run for job in kept if job.run and job.succeeded]
    return Row(values, kept, interval_of(list(map(_best_validation, runs))), test_interval(runs, metric))


def _best_validation(run: Run) -> float:
    """Of the run's records, or failing these of its summary."""
    best, error, metric = best_validation(run), run.summary.get("val_error"), metric_of(run)
    if math.isfinite(best) or not is_number(error):
        return best
    return display_scale(metric) * metric_from_error(metric, error)


def _name_benchmarks(axes: Sequence[Axis], members: Mapping[Values, Sequence[Job]]) -> dict[Values, str]:
    """The benchmark of each combination. One without a run has that of the same data."""
    runs = [job.run for jobs in members.values() for job in jobs if job.run and job.run.config]
    by_run = {run.path: name for name, same in benchmarks(runs).items() for run in same}
    of_data = [at for at, axis in enumerate(axes) if axis.name.partition(".")[0].partition("/")[0] in DATA_SETTINGS]
    known = {v: by_run[j.run.path] for v, jobs in members.items() for j in jobs if j.run and j.run.path in by_run}
    same_data = {tuple(values[at] for at in of_data): name for values, name in known.items()}
    rest = next(iter(known.values())) if len(set(known.values())) == 1 else UNKNOWN
    return {v: known.get(v) or same_data.get(tuple(v[at] for at in of_data), rest) for v in members}


def find_axes(jobs: Sequence[Job]) -> tuple[list[Axis], list[Values]]:
    """Return the settings in which the jobs differ, and each job's values; nothing if the jobs seem unrelated."""
    all_typed = all(job.overrides is not None for job in jobs)
    settings = [_parse_overrides(job) if all_typed else _flatten_config(job) for job in jobs]
    keys = list(dict.fromkeys(key for own in settings for key in own))
    if not all_typed:
        keys = [key for key in keys if not _follows_from_choices(key, settings)]
    rows = [[_value_of(job, own, key) for key in keys] for job, own in zip(jobs, settings, strict=True)]
    differing = [at for at in range(len(keys)) if len({row[at] for row in rows}) > 1]
    if len(differing) > MAX_UNRELATED and not all(job.recorded for job in jobs):
        return [], []
    axes = []
    for at in differing:
        values = dict.fromkeys(row[at] for row in rows)
        numbers = sorted(v for v in values if not isinstance(v, str))
        axes.append(Axis(keys[at], (*numbers, *(v for v in values if isinstance(v, str)))))
    return axes, [tuple(row[at] for at in differing) for row in rows]


def _parse_overrides(job: Job) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for override in job.overrides or ():
        key, _, value = override.partition("=")
        key = key.lstrip("+")
        found[key.removeprefix("~")] = "removed" if key.startswith("~") else parse_value(value)
    return {key: value for key, value in found.items() if not _is_not_swept(key)}


def _flatten_config(job: Job) -> dict[str, Value]:
    if job.run is None or not job.run.config:
        return _parse_overrides(job)
    settings = flatten_keys({k: v for k, v in job.run.config.items() if k != "choices"})
    kept = {k: parse_value(v) for k, v in settings.items() if not is_irrelevant(k) and not k.endswith("_target_")}
    groups = as_mapping(setting(job.run, "choices"))
    choices = {str(k): parse_value(v) for k, v in groups.items() if k != "recipe" and not _is_not_swept(str(k))}
    return choices | kept


def _is_not_swept(key: str) -> bool:
    return key.partition(".")[0].partition("/")[0] in NOT_SWEPT


def _follows_from_choices(key: str, settings: Sequence[Mapping[str, Value]]) -> bool:
    """Whether the choices of groups determine the value of a setting."""
    if "." not in key:
        return False
    by_choice: dict[Any, set[Value]] = {}
    for own in settings:
        choices = tuple(sorted((k, str(v)) for k, v in own.items() if "." not in k))
        by_choice.setdefault(choices, set()).add(own.get(key, MISSING))
    return all(len(values) == 1 for values in by_choice.values())


def _value_of(job: Job, own: Mapping[str, Value], key: str) -> Value:
    """The value of an override, or of the configuration without it."""
    if key in own:
        return own[key]
    if job.run is None:
        return MISSING
    chosen = setting(job.run, f"choices.{key}")
    found = setting(job.run, key) if chosen is None else chosen
    return MISSING if found is None or isinstance(found, Mapping) else parse_value(found)


def parse_value(value: Any) -> Value:
    """Return a value as it compares: 1e-2 is 0.01, but true, null and a list are words."""
    if isinstance(value, (bool, list, Mapping)) or value is None:
        return json.dumps(value, default=str)
    text = str(value).strip()
    try:
        found = float(text)
    except ValueError:
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    if not math.isfinite(found):
        return text
    return int(found) if found.is_integer() and abs(found) < 2**53 else found


def format_value(value: Value, limit: int = 24) -> str:
    """Format a value for a table or an axis."""
    if isinstance(value, str):
        return shorten(value, limit) or NOTHING
    return str(value) if isinstance(value, int) else number(value)


def format_values(axes: Sequence[Axis], values: Sequence[Value]) -> str:
    """Format a combination: `algo=maml algo.inner_lr=0.01`."""
    return " ".join(f"{a.name}={format_value(v)}" for a, v in zip(axes, values, strict=True) if v != MISSING)


def spans_decade(low: float, high: float) -> bool:
    return low > 0 and high > 10 * low
