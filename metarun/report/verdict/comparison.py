r"""The verdict on several runs: which group is better, by how much, on which episodes, and what stands against it.

Groups compare that were tested on the same episodes. The best of them by test metric is held against each of the m
others, at a level of 95 % for all m together (Bonferroni: each interval has the level 1 - 0.05/m):

    tasks    paired over test tasks, the scores of several seeds averaged first; for errors whose mean has no interval
             the median of the differences, by order statistics (report/statistics/heavy_tails.py)
    seeds    Welch's t of the seeds' means, where both groups have two seeds or more

The interval over tasks is for these trained weights; only the one over seeds is for the learner. A difference is called
one where the interval excludes 0, that over seeds if there is one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from metarun.report.compare.groups import Group, by_benchmark
from metarun.report.compare.results import comparable, group_scores, set_apart
from metarun.report.statistics import paired
from metarun.report.statistics.heavy_tails import median_interval
from metarun.report.statistics.intervals import NORMAL_95
from metarun.report.statistics.student import t_quantile
from metarun.report.verdict.run import converged
from metarun.report.verdict.sentence import APART, BETTER, CONVERGED, SPREAD, STABLE, Sentence
from metarun.storage.headline import is_heavy
from metarun.storage.text import (
    count,
    count_nouns,
    display_scale,
    display_unit,
    higher_is_better,
    is_number,
    metric_name,
    number,
)  # fmt: skip

MOST_PAIRS = 4  # in sentences of their own
UNEQUAL = 1.1  # times as many steps

Scored = tuple[Group, np.ndarray]
"""A group, and its scores in display units [seeds, tasks]."""


class Difference(NamedTuple):
    """The best minus another, with its interval."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_0(self) -> bool:
        return self.low > 0 or self.high < 0


def judge_groups(groups: Sequence[Group]) -> list[Sentence]:
    """All sentences, benchmark by benchmark."""
    sentences: list[Sentence] = []
    for benchmark, members in by_benchmark(groups).items():
        if len(members) > 1:
            for same in comparable(members):
                sentences += _rank(benchmark, [(group, _scores_of(group)) for group in same])
            apart = set_apart(members).items()
            sentences += [Sentence(APART, f"{benchmark}: {', '.join(names)}: {why}.") for why, names in apart]
    return [*sentences, *_spread(groups), *_unfinished(groups)]


def _scores_of(group: Group) -> np.ndarray:
    scores, why = group_scores(group)
    assert scores is not None, why
    return display_scale(group.metric) * scores


def _rank(benchmark: str, same: Sequence[Scored]) -> Iterator[Sentence]:
    metric, tasks = same[0][0].metric, same[0][1].shape[1]
    sign, heavy = (1 if higher_is_better(metric) else -1), any(is_heavy(r.summary) for g, _ in same for r in g.runs)
    centre = np.median if heavy else np.mean
    ordered = sorted(same, key=lambda one: -sign * float(centre(one[1].mean(0))))
    (best, own), others = ordered[0], ordered[1:]
    reached, middle = number(float(centre(own.mean(0)))), "median" if heavy else "mean"
    unit = f" {display_unit(metric)}" if display_unit(metric) else ""
    seeds = f" and {len(own)} seeds" if len(own) > 1 else ""
    over = f"{middle} over the same {count(tasks)} test tasks{seeds}"
    name = f"test {metric_name(metric)} {reached}{unit}, {over}"
    yield Sentence(BETTER, f"On {benchmark} {best.label} has the best result of {len(same)}: {name}.", "good")
    for other in others[:MOST_PAIRS]:
        yield _describe_pair((best, own), other, heavy, len(others))
    rest = others[MOST_PAIRS:]
    if rest:
        worse = [g.label for g, s in rest if difference_over_tasks(own, s, heavy, len(others)).excludes_0]
        words = f"Better than {', '.join(worse)} too" if worse else "No further one can be told apart from it"
        yield Sentence(BETTER, f"{words} (of {len(rest)} more).")
    together = f" for all {len(others)} differences together" if len(others) > 1 else ""
    weights = (
        "" if min(len(s) for _, s in same) > 1 else " Of a single seed they are for its weights, not for new seeds."
    )
    yield Sentence(BETTER, f"Intervals: 95 %{together}, paired over test tasks.{weights}")
    steps = {g.label: [s for r in g.runs if is_number(s := r.summary.get("steps_done"))] for g, _ in same}
    spent = {label: float(np.mean(s)) for label, s in steps.items() if s}
    if len(spent) > 1 and max(spent.values()) > UNEQUAL * min(spent.values()):
        named = ", ".join(f"{label} {count(s)}" for label, s in list(spent.items())[:6])
        yield Sentence(BETTER, f"They trained for different numbers of outer steps: {named}.", "warn")


def _describe_pair(a: Scored, b: Scored, heavy: bool, pairs: int) -> Sentence:
    (best, own), (other, scores) = a, b
    unit, sign = " points" if display_unit(best.metric) else "", 1 if higher_is_better(best.metric) else -1
    over_tasks = difference_over_tasks(own, scores, heavy, pairs)
    over_seeds = difference_over_seeds(own, scores, pairs)
    size = f"{number(sign * over_tasks.estimate, 3)}{unit} ({_range(over_tasks, sign)})"
    middle = "a median of " if heavy else ""
    apart = sign * (own.mean(0) - scores.mean(0))
    wins, losses = (f"{100 * float(np.mean(which)):.0f} %" for which in (apart > 0, apart < 0))
    text = f"Better than {other.label} by {middle}{size}; better on {wins} of the tasks, worse on {losses}."
    if not over_tasks.excludes_0:
        text = f"Not told apart from {other.label}: the difference is {middle}{size}."
    if over_seeds:
        ending = "" if over_seeds.excludes_0 else ", so that other seeds may turn it round"
        text += f" Over {len(own)} and {len(scores)} seeds: {_range(over_seeds, sign)}{unit} (Welch's t){ending}."
    return Sentence(BETTER, text, "good" if over_tasks.excludes_0 and over_seeds and over_seeds.excludes_0 else "plain")


def _range(found: Difference, sign: int) -> str:
    low, high = sorted((sign * found.low, sign * found.high))
    return f"{number(low, 3)} to {number(high, 3)}"


def difference_over_tasks(a: np.ndarray, b: np.ndarray, heavy: bool, pairs: int = 1) -> Difference:
    """a minus b [seeds, tasks] of each, paired over tasks: the mean, or the median where errors have heavy tails."""
    x, y = a.mean(0), b.mean(0)
    if heavy:
        return Difference(*median_interval(x - y, 1 - 0.05 / pairs))
    found = paired.compare(x, y, higher_is_better=True)
    half = found.half * NormalDist().inv_cdf(1 - 0.025 / pairs) / NORMAL_95
    return Difference(found.difference, found.difference - half, found.difference + half)


def difference_over_seeds(a: np.ndarray, b: np.ndarray, pairs: int = 1) -> Difference | None:
    """Welch's interval of the difference of the seeds' means; None for a single seed of either."""
    x, y = a.mean(1), b.mean(1)
    if min(len(x), len(y)) < 2:
        return None
    u, v = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
    difference = float(x.mean() - y.mean())
    if u + v <= 0:
        return Difference(difference, difference, difference)
    df = float((u + v) ** 2 / (u**2 / (len(x) - 1) + v**2 / (len(y) - 1)))
    half = t_quantile(1 - 0.025 / pairs, df) * math.sqrt(u + v)
    return Difference(difference, difference - half, difference + half)


def _spread(groups: Sequence[Group]) -> Iterator[Sentence]:
    for group in groups:
        scale, unit = display_scale(group.metric), display_unit(group.metric)
        means = [scale * m for run in group.runs if is_number(m := run.summary.get("mean"))]
        if len(means) > 1:
            ends = f"{number(min(means))} to {number(max(means))}{' ' + unit if unit else ''}"
            deviation = f"standard deviation {number(float(np.std(means, ddof=1)), 2)}{' points' if unit else ''}"
            which = f"{group.label} on {group.benchmark}"
            yield Sentence(SPREAD, f"{which}: {len(means)} seeds, {deviation}, {ends}.")


def _unfinished(groups: Sequence[Group]) -> Iterator[Sentence]:
    """Groups whose runs still improve, diverged, or raised alarms."""
    still, lost, alarms = [], [], []
    for group in groups:
        runs, of = group.runs, f" ({{}} of {len(group.runs)} seeds)" if len(group.runs) > 1 else "{}"
        improving = sum(any("Train longer" in s.text for s in converged(run)) for run in runs)
        diverged = sum(run.summary.get("diverged") is True for run in runs)
        raised = {str(n) for run in runs if isinstance(run.summary.get("alarms"), dict) for n in run.summary["alarms"]}
        name = f"{group.label} on {group.benchmark}"
        still += [name + of.format(improving if len(runs) > 1 else "")] if improving else []
        lost += [name + of.format(diverged if len(runs) > 1 else "")] if diverged else []
        alarms += [f"{name}: {', '.join(sorted(raised)[:4])}"] if raised else []
    if still:
        yield Sentence(
            CONVERGED, f"Still improving at the end: {'; '.join(still)}. More steps may change the order.", "warn"
        )
    elif any(run.of("train") for group in groups for run in group.runs):
        yield Sentence(CONVERGED, "No run is seen to improve still at its end.")
    if lost:
        yield Sentence(STABLE, f"Diverged: {'; '.join(lost)}.", "warn")
    if alarms:
        shown, more = alarms[:6], count_nouns(len(alarms) - 6, "more group")
        yield Sentence(STABLE, f"Alarms: {'; '.join(shown)}{f'; and {more}' if len(alarms) > 6 else ''}.", "warn")
