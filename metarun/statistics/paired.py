r"""Two learners on the same test tasks: the differences task by task.

    d_i = a_i - b_i,   difference = mean d,   half = 1.96 sd(d) / sqrt(n)
    unpaired half = 1.96 sqrt(var(a)/n + var(b)/n)

Symbols: a_i, b_i the scores of task i, n tasks. var(d) = var(a) + var(b) - 2 cov(a, b): where hard tasks are hard for
both, the paired interval is the shorter one. It is about these two sets of trained weights on new tasks, and says
nothing about what other seeds would give.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metarun.statistics.intervals import NORMAL_95, mean_and_error


class Comparison(NamedTuple):
    difference: float  # mean of a - b, whichever direction is better
    half: float  # of its 95 % interval
    unpaired_half: float  # had the two been measured on different tasks
    wins: float  # share of tasks on which a is better
    ties: float
    losses: float
    n: int


def compare(a: ArrayLike, b: ArrayLike, higher_is_better: bool) -> Comparison:
    """a against b, one score per task in the same order; `ValueError` unless both have the same number, at least one.

    A missing score (NaN, null) makes the difference NaN; among the shares it loses to any number and ties with another.
    """
    x, y = (np.asarray(v, dtype=np.float64).ravel() for v in (a, b))
    if len(x) != len(y) or not len(x):
        raise ValueError(f"needs as many scores of one as of the other, and at least one: got {len(x)} and {len(y)}")
    with np.errstate(invalid="ignore"):  # infinity - infinity
        difference, error, n = mean_and_error(x - y)
    unpaired = math.hypot(mean_and_error(x)[1], mean_and_error(y)[1])
    better, worse = _goodness(x, higher_is_better), _goodness(y, higher_is_better)
    shares = [float(np.mean(found)) for found in (better > worse, better == worse, better < worse)]
    return Comparison(difference, NORMAL_95 * error, NORMAL_95 * unpaired, shares[0], shares[1], shares[2], n)


def _goodness(scores: np.ndarray, higher_is_better: bool) -> np.ndarray:
    """Larger is better, and a missing score is worst."""
    return np.where(np.isnan(scores), -np.inf, scores if higher_is_better else -scores)
