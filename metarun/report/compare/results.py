"""What groups reached: their results, paired differences on the same episodes, the best within equal compute.

With one seed an interval is over test tasks; with several it is Student's t over the seeds' means. IQM is the mean of
the middle half of the seeds' means with a bootstrap interval over seeds (Agarwal et al. 2021, arXiv 2108.13264); a
benchmark is one stratum, since the test tasks of a run share its weights. All metrics are in display units: per cent
for an accuracy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from metarun.report.compare.groups import Group, by_benchmark
from metarun.report.read.facts import headline_scores, inner_gradients, metric_of, validation_curve
from metarun.report.read.runs import Run
from metarun.report.statistics import intervals, paired
from metarun.report.statistics.variance import variance_components
from metarun.storage.text import display_scale, higher_is_better, is_number

NAN = math.nan
UNITS = {"outer steps": "step", "seconds": "seconds", "inner gradients": "inner_gradients"}  # of cost, in a curve
ALL_PAIRS = 8  # groups of a benchmark up to which every pair is compared; beyond it, each with the best


class Interval(NamedTuple):
    mean: float
    half: float
    over: str  # tasks, seeds, or ""


class Result(NamedTuple):
    """What a group reached and what it cost, the latter as means over seeds."""

    group: Group
    tested: int  # runs with a test metric
    diverged: int
    test: Interval
    iqm: intervals.Interval
    spread: tuple[float, float]  # standard deviations of seeds and of tasks, as components of the scores' variance
    validation: Interval  # best of each run
    steps: float
    seconds: float
    inner_gradients: float


class Pair(NamedTuple):
    """Group `a` against `b`; `comparison` is None if their episodes differ, and `why` gives the reason."""

    a: Group
    b: Group
    comparison: paired.Comparison | None
    why: str = ""


class Budget(NamedTuple):
    """The best validation of each group within what all of them spent."""

    unit: str
    amount: float
    best: dict[str, Interval]  # by label


def summarize(group: Group) -> Result:
    """Return the result of a group."""
    means = display_scale(group.metric) * np.array([m for r in group.runs if is_number(m := r.summary.get("mean"))])
    scores, _ = group_scores(group)
    spread = (NAN, NAN)
    if scores is not None and min(scores.shape) > 1:
        components = variance_components(scores * display_scale(group.metric))
        spread = math.sqrt(components.seed), math.sqrt(components.task)
    no_iqm = intervals.Interval(NAN, NAN, NAN)  # of fewer than three seeds: the middle half of two is their mean
    return Result(
        group=group,
        tested=len(means),
        diverged=sum(bool(r.summary.get("diverged")) for r in group.runs),
        test=test_interval(group.runs, group.metric),
        iqm=intervals.stratified_bootstrap(means, intervals.iqm, seed=0) if len(means) > 2 else no_iqm,
        spread=spread,
        validation=interval_of(list(map(best_validation, group.runs))),
        steps=_mean([r.summary.get("steps_done") for r in group.runs]),
        seconds=_mean([r.summary.get("seconds") for r in group.runs]),
        inner_gradients=_mean([inner_gradients(r) for r in group.runs]),
    )


def test_interval(runs: Sequence[Run], metric: str) -> Interval:
    """Return the test metric with its interval over seeds, or over the tasks of a single seed."""
    scale, tested = display_scale(metric), [r.summary for r in runs if is_number(r.summary.get("mean"))]
    half = tested[0].get("ci95") if len(tested) == 1 else None
    return interval_of([scale * s["mean"] for s in tested], scale * half if is_number(half) else NAN)


def interval_of(means: Sequence[float], half: float = NAN) -> Interval:
    """Return the interval over seeds of the finite means; a single one has its own, `half` wide to each side."""
    finite = [mean for mean in means if math.isfinite(mean)]
    if len(finite) < 2:
        return Interval(finite[0], half, "tasks" if math.isfinite(half) else "") if finite else Interval(NAN, NAN, "")
    estimate = intervals.t_interval(np.array(finite))
    return Interval(float(estimate.mean), float(estimate.half), "seeds")


def _mean(values: Sequence[Any]) -> float:
    numbers = [float(v) for v in values if is_number(v)]
    return sum(numbers) / len(numbers) if numbers else NAN


def best_validation(run: Run, cost: str = "step", limit: float = math.inf) -> float:
    """Return the best finite validation among those that cost at most `limit`; NaN if there is none."""
    curve = validation_curve(run)
    means = curve["mean"][np.isfinite(curve["mean"]) & (curve[cost] <= limit)] if curve else np.zeros(0)
    return float(means.max() if higher_is_better(metric_of(run)) else means.min()) if len(means) else NAN


def group_scores(group: Group) -> tuple[np.ndarray | None, str]:
    """Return the scores [seeds, tasks] of the tested runs and the hash of their episodes, or None and the reason."""
    tested = [(run, headline_scores(run)) for run in group.runs]
    scores = [s for _, s in tested if s is not None and np.isfinite(s).all()]
    hashes = {str(run.summary.get("episodes_sha256")) for run, s in tested if s is not None}
    if not scores:
        return None, f"{group.label} has no scores of single tasks"
    if len(hashes) > 1 or len({len(s) for s in scores}) > 1:
        return None, f"the seeds of {group.label} were tested on different episodes"
    return np.stack(scores), hashes.pop()


def pair_benchmarks(groups: Sequence[Group]) -> list[list[Pair]]:
    """Return the pairs of each benchmark that has any; runs on different benchmarks are never paired."""
    return [found for members in by_benchmark(groups).values() if (found := pairs(members))]


def pairs(groups: Sequence[Group]) -> list[Pair]:
    """Return every pair of a benchmark's groups that were tested on the same episodes; of many, each with the best."""
    return [pair for same in comparable(groups) for pair in _pairs_of(same)]


def comparable(groups: Sequence[Group]) -> list[list[Group]]:
    """Return the sets of two groups or more that were tested on the same episodes."""
    sets: dict[tuple[str, int], list[Group]] = {}
    for group in groups:
        scores, digits = group_scores(group)
        if scores is not None and digits != "None":
            sets.setdefault((digits, scores.shape[1]), []).append(group)
    return [same for same in sets.values() if len(same) > 1]


def set_apart(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Return the labels of a benchmark's groups that compare with no other, by the reason."""
    paired_up = {group.label for same in comparable(groups) for group in same}
    reasons: dict[str, list[str]] = {}
    for group in (g for g in groups if g.label not in paired_up):
        scores, why = group_scores(group)
        if scores is not None:
            reason = "tested on other episodes than the rest"
        elif not any(is_number(run.summary.get("mean")) for run in group.runs):
            statuses = sorted({str(run.summary.get("status") or "unknown") for run in group.runs})
            reason = f"not tested (status: {', '.join(statuses)})"
        else:
            reason = why.replace(f"the seeds of {group.label} were", "its seeds were").replace(
                f"{group.label} has", "has"
            )
        reasons.setdefault(reason, []).append(group.label)
    return reasons


def _pairs_of(groups: Sequence[Group]) -> list[Pair]:
    if len(groups) <= ALL_PAIRS:
        return [compare(a, b) for a, b in itertools.combinations(groups, 2)]
    means = {id(g): test_interval(g.runs, g.metric).mean for g in groups}
    tested = [g for g in groups if math.isfinite(means[id(g)])]
    if not tested:
        return []
    sign = 1 if higher_is_better(tested[0].metric) else -1
    best = max(tested, key=lambda g: sign * means[id(g)])
    return [compare(best, other) for other in groups if other is not best]


def compare(a: Group, b: Group) -> Pair:
    """Compare two groups paired over test tasks, the scores of several seeds averaged task by task."""
    (scores_a, hash_a), (scores_b, hash_b) = group_scores(a), group_scores(b)
    if scores_a is None or scores_b is None:
        return Pair(a, b, None, hash_a if scores_a is None else hash_b)
    if hash_a != hash_b or hash_a == "None" or scores_a.shape[1] != scores_b.shape[1]:
        return Pair(a, b, None, f"their test episodes differ ({hash_a[:8]} and {hash_b[:8]})")
    scale = display_scale(a.metric)
    return Pair(a, b, paired.compare(scale * scores_a.mean(0), scale * scores_b.mean(0), higher_is_better(a.metric)))


def equal_compute(groups: Sequence[Group]) -> list[Budget]:
    """Return, for each unit, the smallest total of a run of these groups, and what each had reached within it."""
    budgets = []
    for unit, cost in UNITS.items():
        totals = {g.label: [t for r in g.runs if (t := _total(validation_curve(r).get(cost))) > 0] for g in groups}
        usable = [g for g in groups if totals[g.label]]
        if len(usable) < 2:
            continue
        amount = min(min(totals[g.label]) for g in usable)
        limit = amount * (1 + 1e-9)
        best = {g.label: interval_of([best_validation(r, cost, limit) for r in g.runs]) for g in usable}
        budgets.append(Budget(unit, amount, best))
    return budgets


def _total(spent: np.ndarray | None) -> float:
    """The largest finite amount; 0 without any."""
    return 0.0 if spent is None else float(np.max(spent, where=np.isfinite(spent), initial=0.0))
