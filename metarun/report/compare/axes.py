"""The settings in which runs differ, in the words that a user types: `algo`, `algo.inner_lr`.

They are the keys of what was typed, where that is known of all runs; a run for which a key was not typed has the
value in its settings. Where it is not known (a run started from Python), they are the groups whose choice differs, and
the settings that differ among runs of the same choices: those that merely follow from a choice are none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from metarun.report.compare.groups import elsewhere
from metarun.report.read.facts import setting
from metarun.report.read.jobs import Job
from metarun.report.read.runs import Run
from metarun.storage.json_values import flatten_keys
from metarun.storage.text import NOTHING, number, shorten

NOT_SWEPT = ("seed", "hydra", "sweep", "report", "resume", "logger", "trusted_modules")
MOST_UNRELATED = 6  # settings in which runs that no sweep made may differ, to be shown as one
DECADE = 10.0

Value = float | int | str
MISSING = ""


class Axis(NamedTuple):
    """A setting and its values: numbers ascending, or words in the order of their first appearance."""

    name: str
    values: tuple[Value, ...]

    @property
    def numeric(self) -> bool:
        return not any(isinstance(v, str) for v in self.values)

    @property
    def logarithmic(self) -> bool:
        """Whether the values are positive numbers over more than a decade."""
        return self.numeric and spans_decade(float(self.values[0]), float(self.values[-1]))

    def among(self, values: Sequence[Value]) -> Axis:
        """The axis with those of its values that are among these."""
        return self._replace(values=tuple(v for v in self.values if v in set(values)))


def spans_decade(low: float, high: float) -> bool:
    return low > 0 and high > DECADE * low


def axes_of(jobs: Sequence[Job]) -> tuple[list[Axis], list[tuple[Value, ...]]]:
    """The settings in which the jobs differ, and each job's values; none where the jobs seem to be unrelated."""
    told = [_typed(j) if _all_typed(jobs) else _configured(j) for j in jobs]
    keys = list(dict.fromkeys(key for settings in told for key in settings))
    if not _all_typed(jobs):
        keys = [key for key in keys if not _follows(key, told)]
    rows = [[_value(job, settings, key) for key in keys] for job, settings in zip(jobs, told, strict=True)]
    differing = [at for at in range(len(keys)) if len({row[at] for row in rows}) > 1]
    if len(differing) > MOST_UNRELATED and not all(job.recorded for job in jobs):
        return [], []
    axes = [Axis(keys[at], ordered([row[at] for row in rows])) for at in differing]
    return axes, [tuple(row[at] for at in differing) for row in rows]


def ordered(values: Sequence[Value]) -> tuple[Value, ...]:
    """Each once, numbers before words."""
    once = dict.fromkeys(values)
    numbers = sorted(v for v in once if not isinstance(v, str))
    return (*numbers, *(v for v in once if isinstance(v, str)))


def typed(value: Any) -> Value:
    """A value as it compares: 1e-2 is 0.01, but true, null and a list are words."""
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


def shown(value: Value, limit: int = 24) -> str:
    """A value for a table or an axis."""
    if isinstance(value, str):
        return shorten(value, limit) or NOTHING
    return str(value) if isinstance(value, int) else number(value)


def in_words(axes: Sequence[Axis], values: Sequence[Value]) -> str:
    """`algo=maml algo.inner_lr=0.01`."""
    return " ".join(f"{a.name}={shown(v)}" for a, v in zip(axes, values, strict=True) if v != MISSING)


def _all_typed(jobs: Sequence[Job]) -> bool:
    return all(job.overrides is not None for job in jobs)


def _typed(job: Job) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for override in job.overrides or ():
        key, _, value = override.partition("=")
        key = key.lstrip("+")
        found |= {key.removeprefix("~"): "removed" if key.startswith("~") else typed(value)}
    return {key: value for key, value in found.items() if not _is_not_swept(key)}


def _configured(job: Job) -> dict[str, Value]:
    if job.run is None or not job.run.config:
        return _typed(job)
    settings = flatten_keys({k: v for k, v in job.run.config.items() if k != "choices"})
    kept = {k: typed(v) for k, v in settings.items() if not elsewhere(k) and not k.endswith("_target_")}
    return _choices(job.run) | kept


def _choices(run: Run) -> dict[str, Value]:
    chosen = setting(run, "choices")
    chosen = chosen if isinstance(chosen, Mapping) else {}
    return {str(k): typed(v) for k, v in chosen.items() if k != "recipe" and not _is_not_swept(str(k))}


def _is_not_swept(key: str) -> bool:
    return key.partition(".")[0].partition("/")[0] in NOT_SWEPT


def _follows(key: str, told: Sequence[Mapping[str, Value]]) -> bool:
    """Whether a setting's value is told by the choices of groups."""
    if "." not in key:
        return False
    by_choice: dict[Any, set[Value]] = {}
    for settings in told:
        choices = tuple(sorted((k, str(v)) for k, v in settings.items() if "." not in k))
        by_choice.setdefault(choices, set()).add(settings.get(key, MISSING))
    return all(len(values) == 1 for values in by_choice.values())


def _value(job: Job, told: Mapping[str, Value], key: str) -> Value:
    """What was typed, or what the setting was without."""
    if key in told:
        return told[key]
    if job.run is None:
        return MISSING
    chosen = setting(job.run, f"choices.{key}")
    found = setting(job.run, key) if chosen is None else chosen
    return MISSING if found is None or isinstance(found, Mapping) else typed(found)
