"""Runs that are the same but for their seed, and what tells the groups apart.

A benchmark is what test episodes are made from: the data set's settings (its training queries aside), their size, the
metric. Within one, runs of the same algorithm and settings form a group; where groups of an algorithm differ in
settings, these are in the label. Where a run was done (device, logger, folders) and on how many tasks it was
validated and tested makes no difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from metarun.report.read.facts import component, episode_size, metric_of, setting
from metarun.report.read.runs import Run
from metarun.storage.json_values import flatten_keys
from metarun.storage.text import shorten

COMPARED = ("train", "evaluate", None)  # jobs that end in a figure
ELSEWHERE = (  # settings that do not change how a run learns
    "seed", "run", "resume", "report", "analysis", "predict", "export", "trusted_modules", "choices",
    "device", "logger", "diagnostics", "val", "test",
)  # fmt: skip
ELSEWHERE_KEYS = ("data.root", "data.download", "train.log_every", "train.checkpoint_every", "train.max_minutes")
OF_TRAINING = ("data.queries", "data.augment")  # settings of the data that test episodes do not depend on
NAMED_SETTINGS = 3  # of those that tell groups apart

Flat = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """Runs of one algorithm with one set of settings on one benchmark, one a seed."""

    label: str
    algo: str
    benchmark: str
    metric: str
    runs: tuple[Run, ...]
    repeated: int  # runs of a seed that is there already, left out


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """The runs that ended in a figure or should have, benchmark by benchmark in the order of their first run."""
    found = []
    for benchmark, members in benchmarks(runs).items():
        for label, same in named(_gathered(members, _variant), lambda run: shorten(component(run, "algo"))).items():
            kept = _one_a_seed(same)
            algo, metric = component(same[0], "algo"), metric_of(same[0])
            found.append(Group(label, algo, benchmark, metric, kept, len(same) - len(kept)))
    return found


def benchmarks(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs that ended in a figure or should have, by the name of their benchmark."""
    compared = [run for run in runs if run.config.get("job") in COMPARED]
    return named(_gathered(compared, _benchmark), lambda run: f"{shorten(component(run, 'data'))} {episode_size(run)}")


def by_benchmark(groups: Sequence[Group]) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.benchmark, []).append(group)
    return found


def _benchmark(run: Run) -> Flat:
    data = {k: v for k, v in flatten_keys(run.config).items() if k.startswith("data.") and not elsewhere(k)}
    size = {"data": component(run, "data"), "size": episode_size(run), "metric": metric_of(run)}
    return size | {k: v for k, v in data.items() if not k.startswith(OF_TRAINING)}


def _variant(run: Run) -> Flat:
    if not run.config:  # settings that are not known may differ
        return {"algo": component(run, "algo"), "folder": str(run.path)}
    settings = {k: v for k, v in flatten_keys(run.config).items() if not elsewhere(k)}
    of_test = {k for k in settings if k.startswith("data.") and not k.startswith(OF_TRAINING)}
    return {"algo": component(run, "algo")} | {k: v for k, v in settings.items() if k not in of_test}


def elsewhere(key: str) -> bool:
    """Whether a setting makes no difference to how a run learns."""
    return key.partition(".")[0] in ELSEWHERE or key in ELSEWHERE_KEYS


def _gathered(runs: Iterable[Run], key: Callable[[Run], Flat]) -> list[tuple[Flat, list[Run]]]:
    """Runs with the same settings together, in the order of the first of each."""
    found: dict[Hashable, tuple[Flat, list[Run]]] = {}
    for run in runs:
        settings = key(run)
        found.setdefault(json.dumps(settings, sort_keys=True, default=str), (settings, []))[1].append(run)
    return list(found.values())


def named(gathered: Sequence[tuple[Flat, list[T]]], base: Callable[[T], str]) -> dict[str, list[T]]:
    """Each by its base name, with the settings in which it differs from others of that name; never two the same."""
    alike: dict[str, list[tuple[Flat, list[T]]]] = {}
    for settings, members in gathered:
        alike.setdefault(base(members[0]), []).append((settings, members))
    labels: dict[str, list[T]] = {}
    for settings, members in gathered:
        name = base(members[0])
        told = _differing([s for s, _ in alike[name]])
        label = name + _in_words({k: settings[k] for k in told if k in settings})
        labels[_unique(label, labels)] = members
    return labels


def _differing(several: Sequence[Flat]) -> list[str]:
    """The settings that are not the same in all, implementation names last."""
    keys = {key: None for settings in several for key in settings}
    told = [k for k in keys if len({json.dumps(s.get(k), default=str) for s in several}) > 1]
    return sorted(told, key=lambda k: k.endswith("_target_"))


def _in_words(told: Flat) -> str:
    words = [f"{key.removeprefix('algo.')}={shorten(value, 24)}" for key, value in list(told.items())[:NAMED_SETTINGS]]
    more = ", ..." if len(told) > NAMED_SETTINGS else ""
    return f" ({', '.join(words)}{more})" if words else ""


def _unique(label: str, taken: Mapping[str, Any]) -> str:
    numbered = [label, *(f"{label} #{n}" for n in range(2, len(taken) + 2))]
    return next(name for name in numbered if name not in taken)


def _one_a_seed(runs: Sequence[Run]) -> tuple[Run, ...]:
    """One run of each seed: of several, the first that has a test result, else the first."""
    seeds: dict[str, Run] = {}
    for run in runs:
        seed = str(run.summary.get("seed", setting(run, "seed")))
        if seed not in seeds or ("mean" in run.summary and "mean" not in seeds[seed].summary):
            seeds[seed] = run
    return tuple(seeds.values())
