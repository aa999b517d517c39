r"""Two learners on the same test tasks: the differences task by task.

    d_i = a_i - b_i,   difference = mean d,   half = 1.96 sd(d) / sqrt(n)
    unpaired half = 1.96 sqrt(var(a)/n + var(b)/n)

Symbols: a_i, b_i the scores of task i, n tasks. var(d) = var(a) + var(b) - 2 cov(a, b): where hard tasks are hard for
both, the paired interval is the shorter one. It is for these two sets of trained weights on new tasks, and
not for other seeds.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metarun.report.statistics.intervals import NORMAL_95, mean_and_error


class Comparison(NamedTuple):
    difference: float  # mean of a - b, whichever direction is better
    half: float  # of its 95 % interval
    unpaired_half: float  # had the two been measured on different tasks
    wins: float  # share of tasks on which a is better
    ties: float
    losses: float
    n: int


def compare(a: ArrayLike, b: ArrayLike, higher_is_better: bool) -> Comparison:
    """Compare a with b, one score per task in the same order; `ValueError` if their numbers differ or are 0.

    A missing score (NaN, null) makes the difference NaN; among the shares it loses to any number and ties with another.
    """
    x, y = (np.asarray(v, dtype=np.float64).ravel() for v in (a, b))
    if len(x) != len(y) or not len(x):
        raise ValueError(f"needs as many scores of one as of the other, and at least one: got {len(x)} and {len(y)}")
    with np.errstate(invalid="ignore"):  # infinity - infinity
        difference, error, n = mean_and_error(x - y)
    unpaired = math.hypot(mean_and_error(x)[1], mean_and_error(y)[1])
    x_good, y_good = (np.where(np.isnan(v), -np.inf, v if higher_is_better else -v) for v in (x, y))
    wins, ties, losses = (float(np.mean(which)) for which in (x_good > y_good, x_good == y_good, x_good < y_good))
    return Comparison(difference, NORMAL_95 * error, NORMAL_95 * unpaired, wins, ties, losses, n)
