"""The figures of groups: their result, paired differences on the same episodes, the best within equal compute.

With one seed an interval is over test tasks; with several it is Student's t over the seeds' means. IQM is the mean of
the middle half of the seeds' means with a bootstrap interval over seeds (Agarwal et al. 2021, arXiv 2108.13264); a
benchmark is one stratum, since the test tasks of a run share its weights. All figures are in the unit they are shown
in: per cent for an accuracy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from metarun.report.compare.groups import Group
from metarun.report.read.facts import Point, headline_scores, inner_gradients, metric_of, setting, validations
from metarun.report.read.runs import Run
from metarun.statistics import intervals, paired
from metarun.statistics.variance import variance_components
from metarun.storage.text import display_scale, higher_is_better, is_number

NAN = math.nan
UNITS: dict[str, Callable[[Point], float]] = {
    "outer steps": lambda p: p.step,
    "seconds": lambda p: p.seconds,
    "inner gradients": lambda p: p.inner_gradients,
}
ALL_PAIRS = 8  # groups of a benchmark up to which every pair is compared; beyond it, each with the best


class Interval(NamedTuple):
    mean: float
    half: float
    over: str  # tasks, seeds, or nothing


class Result(NamedTuple):
    """What a group reached and what it cost, the latter as means over seeds."""

    group: Group
    tested: int  # runs with a test figure
    diverged: int
    test: Interval
    iqm: intervals.Interval
    spread: tuple[float, float]  # standard deviations of seeds and of tasks, as components of the scores' variance
    validation: Interval  # best of each run
    steps: float
    seconds: float
    inner_gradients: float


class Pair(NamedTuple):
    """Group `a` against `b`; `comparison` is None where their episodes are not the same, and `why` says so."""

    a: Group
    b: Group
    comparison: paired.Comparison | None
    why: str = ""


class Budget(NamedTuple):
    """The best validation of each group within what all of them spent."""

    unit: str
    amount: float
    best: dict[str, Interval]  # by label


def result(group: Group) -> Result:
    scale, runs = display_scale(group.metric), group.runs
    means = [scale * r.summary["mean"] for r in runs if is_number(r.summary.get("mean"))]
    best = [b for b in (best_validation(r) for r in runs) if math.isfinite(b)]
    return Result(
        group=group,
        tested=len(means),
        diverged=sum(bool(r.summary.get("diverged")) for r in runs),
        test=tested_over(group),
        iqm=_iqm(means),
        spread=_spread(group),
        validation=interval_of(best, NAN),
        steps=_mean([r.summary.get("steps_done") for r in runs]),
        seconds=_mean([r.summary.get("seconds") for r in runs]),
        inner_gradients=_mean([inner_gradients(r) for r in runs]),
    )


def tested_over(group: Group) -> Interval:
    """The test's figure over seeds, or over the tasks of one."""
    scale, tested = display_scale(group.metric), [r.summary for r in group.runs if is_number(r.summary.get("mean"))]
    half = tested[0].get("ci95") if len(tested) == 1 else None
    return interval_of([scale * s["mean"] for s in tested], scale * half if is_number(half) else NAN)


def interval_of(means: Sequence[float], half: float) -> Interval:
    """Of one run its own interval, of several the one over seeds."""
    if len(means) < 2:
        return Interval(means[0], half, "tasks" if math.isfinite(half) else "") if means else Interval(NAN, NAN, "")
    estimate = intervals.t_interval(np.array(means))
    return Interval(float(estimate.mean), float(estimate.half), "seeds")


def _mean(found: Sequence[object]) -> float:
    numbers = [float(v) for v in found if isinstance(v, (int, float)) and is_number(v)]
    return sum(numbers) / len(numbers) if numbers else NAN


def _iqm(means: Sequence[float]) -> intervals.Interval:
    """Of three seeds or more: the middle half of two is their mean."""
    if len(means) < 3:
        return intervals.Interval(NAN, NAN, NAN)
    return intervals.stratified_bootstrap(np.array(means), intervals.iqm, seed=0)


def _spread(group: Group) -> tuple[float, float]:
    scores, _ = group_scores(group)
    if scores is None or min(scores.shape) < 2:
        return NAN, NAN
    found = variance_components(scores * display_scale(group.metric))
    return math.sqrt(found.seed), math.sqrt(found.task)


def best_validation(run: Run, within: Callable[[Point], bool] = lambda _: True) -> float:
    means = [p.mean for p in validations(run) if math.isfinite(p.mean) and within(p)]
    better = max if higher_is_better(metric_of(run)) else min
    return better(means) if means else NAN


def group_scores(group: Group) -> tuple[np.ndarray | None, str]:
    """Scores [seeds, tasks] of the tested runs and the hash of their episodes, or None and why there are none."""
    tested = [(run, headline_scores(run)) for run in group.runs]
    scores = [s for _, s in tested if s is not None and np.isfinite(s).all()]
    hashes = {str(run.summary.get("episodes_sha256")) for run, s in tested if s is not None}
    if not scores:
        return None, f"{group.label} has no scores of single tasks"
    if len(hashes) > 1 or len({len(s) for s in scores}) > 1:
        return None, f"the seeds of {group.label} were tested on different episodes"
    return np.stack(scores), hashes.pop()


def pairs(groups: Sequence[Group]) -> list[Pair]:
    """Every pair of a benchmark's groups; of many groups, each with the one of the best mean."""
    if len(groups) <= ALL_PAIRS:
        return [compare(a, b) for a, b in itertools.combinations(groups, 2)]
    best = best_group(groups)
    return [compare(best, other) for other in groups if other is not best] if best else []


def best_group(groups: Sequence[Group]) -> Group | None:
    means = {id(g): tested_over(g).mean for g in groups}
    tested = [g for g in groups if math.isfinite(means[id(g)])]
    sign = 1 if tested and higher_is_better(tested[0].metric) else -1
    return max(tested, key=lambda g: sign * means[id(g)], default=None)


def compare(a: Group, b: Group) -> Pair:
    """Paired over test tasks, the scores of several seeds averaged task by task."""
    (scores_a, one), (scores_b, other) = group_scores(a), group_scores(b)
    if scores_a is None or scores_b is None:
        return Pair(a, b, None, one if scores_a is None else other)
    if one != other or one == "None" or scores_a.shape[1] != scores_b.shape[1]:
        return Pair(a, b, None, f"their test episodes differ ({one[:8]} and {other[:8]})")
    scale = display_scale(a.metric)
    means = scale * scores_a.mean(0), scale * scores_b.mean(0)
    return Pair(a, b, paired.compare(*means, higher_is_better(a.metric)))


def equal_compute(groups: Sequence[Group]) -> list[Budget]:
    """For each unit, the smallest total of a run of these groups, and what each had reached within it."""
    return [b for b in (_budget(groups, unit, of) for unit, of in UNITS.items()) if b]


def _budget(groups: Sequence[Group], unit: str, of: Callable[[Point], float]) -> Budget | None:
    spent = {g.label: [max((of(p) for p in validations(r)), default=NAN) for r in g.runs] for g in groups}
    usable = [g for g in groups if any(math.isfinite(v) and v > 0 for v in spent[g.label])]
    if len(usable) < 2:
        return None
    amount = min(v for g in usable for v in spent[g.label] if math.isfinite(v) and v > 0)
    best = {}
    for group in usable:
        reached = [best_validation(run, lambda p: of(p) <= amount * (1 + 1e-9)) for run in group.runs]
        best[group.label] = interval_of([v for v in reached if math.isfinite(v)], NAN)
    return Budget(unit, amount, best)


def device_of(group: Group) -> set[str]:
    return {str(run.summary.get("device") or setting(run, "device.name")) for run in group.runs}
