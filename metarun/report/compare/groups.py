"""Groups of runs that are the same but for their seed, and the settings that tell groups apart.

A benchmark is what test episodes are made from: the data set's settings (its training queries aside), their size, the
metric. Within one, runs of the same algorithm and settings form a group; where groups of an algorithm differ in
settings, these are in the label. Where a run was done (device, logger, folders) and on how many tasks it was
validated and tested makes no difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from metarun.report.read.facts import component, episode_size, metric_of, seed_of
from metarun.report.read.runs import COMPARED_JOBS, Run
from metarun.storage.json_values import flatten_keys
from metarun.storage.text import shorten

IRRELEVANT = (  # settings that do not change how a run learns
    "seed", "run", "resume", "report", "analysis", "predict", "export", "trusted_modules", "choices",
    "device", "logger", "diagnostics", "val", "test",
)  # fmt: skip
IRRELEVANT_KEYS = ("data.root", "data.download", "train.log_every", "train.checkpoint_every", "train.max_minutes")
TRAINING_DATA = ("data.queries", "data.augment")  # settings of the data that test episodes do not depend on
NAMED_SETTINGS = 3  # of those that tell groups apart

Flat = dict[str, Any]
Member = TypeVar("Member")


@dataclass(frozen=True)
class Group:
    """Runs of one algorithm with one set of settings on one benchmark, one for each seed."""

    label: str
    benchmark: str
    metric: str
    runs: tuple[Run, ...]
    repeated: int  # runs that repeat a seed, left out


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Return the groups of the runs that train or test, benchmark by benchmark in the order of their first run."""
    groups = []
    for benchmark, members in benchmarks(runs).items():
        for label, same in _label(members, _group_settings, lambda run: shorten(component(run, "algo"))).items():
            kept = one_of_each_seed(same, lambda run: str(seed_of(run)), lambda run: "mean" in run.summary)
            groups.append(Group(label, benchmark, metric_of(same[0]), kept, repeated=len(same) - len(kept)))
    return groups


def one_of_each_seed(
    members: Iterable[Member], seed: Callable[[Member], str], has_result: Callable[[Member], bool]
) -> tuple[Member, ...]:
    """Return one member of each seed: of several, the first that has a result, else the first."""
    kept: dict[str, Member] = {}
    for member in members:
        if seed(member) not in kept or (has_result(member) and not has_result(kept[seed(member)])):
            kept[seed(member)] = member
    return tuple(kept.values())


def benchmarks(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs that train or test by the name of their benchmark."""
    compared = [run for run in runs if run.config.get("job") in COMPARED_JOBS]
    return _label(compared, _benchmark_settings, lambda run: f"{shorten(component(run, 'data'))} {episode_size(run)}")


def by_benchmark(groups: Iterable[Group]) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.benchmark, []).append(group)
    return found


def is_irrelevant(key: str) -> bool:
    """Whether a setting makes no difference to how a run learns."""
    return key.partition(".")[0] in IRRELEVANT or key in IRRELEVANT_KEYS


def _is_of_test_episodes(key: str) -> bool:
    return key.startswith("data.") and not key.startswith(TRAINING_DATA)


def _benchmark_settings(run: Run) -> Flat:
    settings = {k: v for k, v in flatten_keys(run.config).items() if _is_of_test_episodes(k) and not is_irrelevant(k)}
    return {"data": component(run, "data"), "size": episode_size(run), "metric": metric_of(run)} | settings


def _group_settings(run: Run) -> Flat:
    if not run.config:  # unknown settings may differ
        return {"algo": component(run, "algo"), "folder": str(run.path)}
    settings = {k: v for k, v in flatten_keys(run.config).items() if not _is_of_test_episodes(k)}
    return {"algo": component(run, "algo")} | {k: v for k, v in settings.items() if not is_irrelevant(k)}


def _label(runs: Iterable[Run], settings_of: Callable[[Run], Flat], name: Callable[[Run], str]) -> dict[str, list[Run]]:
    """Gather runs with the same settings, and label each set of them with a name of its own.

    The label is the name, with the settings in which it differs from others of that name.
    """
    gathered: dict[str, tuple[Flat, list[Run]]] = {}
    for run in runs:
        settings = settings_of(run)
        key = json.dumps(settings, sort_keys=True, default=str)
        gathered.setdefault(key, (settings, []))[1].append(run)
    same_name: dict[str, list[Flat]] = {}
    for settings, members in gathered.values():
        same_name.setdefault(name(members[0]), []).append(settings)
    labels: dict[str, list[Run]] = {}
    for settings, members in gathered.values():
        base = name(members[0])
        label = base + _describe_differences(settings, same_name[base])
        numbered = [label, *(f"{label} #{n}" for n in range(2, len(labels) + 2))]
        labels[next(candidate for candidate in numbered if candidate not in labels)] = members
    return labels


def _describe_differences(own: Flat, all_settings: Sequence[Flat]) -> str:
    """`(inner_lr=0.1, ...)`: the settings that are not the same in all, implementation names last."""
    keys = dict.fromkeys(key for settings in all_settings for key in settings)
    differing = [k for k in keys if len({json.dumps(s.get(k), default=str) for s in all_settings}) > 1]
    shown = [k for k in sorted(differing, key=lambda k: k.endswith("_target_")) if k in own]
    words = [f"{key.removeprefix('algo.')}={shorten(own[key], 24)}" for key in shown[:NAMED_SETTINGS]]
    more = ", ..." if len(shown) > NAMED_SETTINGS else ""
    return f" ({', '.join(words)}{more})" if words else ""
