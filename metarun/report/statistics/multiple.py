r"""Paired tests over a few runs, and Holm's correction where several are made at once.

    t = d sqrt(n) / s,   p = P(|T_{n-1}| >= |t|)        d, s mean and deviation of the n differences
    p_(i) corrected = max_{j <= i} min(1, (m - j + 1) p_(j))        p_(1) <= ... <= p_(m)

With all differences equal p is 0, or 1 if they are 0. Rejecting where the corrected p is below 5 % keeps the chance of
any wrong rejection below 5 %, however the tests depend on each other (Holm 1979, Scandinavian Journal of Statistics 6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metarun.report.statistics.intervals import mean_and_error
from metarun.report.statistics.student import t_quantile, two_sided_tail


class PairedTest(NamedTuple):
    difference: float
    half: float  # of Student's 95 % interval
    p: float
    pairs: int


def paired_test(a: ArrayLike, b: ArrayLike) -> PairedTest:
    """a less b, in pairs; NaN for fewer than two of them."""
    difference, error, count = mean_and_error(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64))
    if count < 2:
        return PairedTest(difference, math.nan, math.nan, count)
    p = two_sided_tail(abs(difference) / error, count - 1) if error > 0 else float(difference == 0)
    return PairedTest(difference, t_quantile(0.975, count - 1) * error, p, count)


def holm(p: Sequence[float]) -> list[float]:
    """The corrected p of each test; tests without one (NaN) do not count."""
    corrected, largest = [math.nan] * len(p), 0.0
    known = sorted((value, i) for i, value in enumerate(p) if not math.isnan(value))
    for done, (value, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - done) * value))
        corrected[i] = largest
    return corrected
