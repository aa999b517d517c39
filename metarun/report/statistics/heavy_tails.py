r"""Errors with heavy tails: where a mean over tasks and its interval say nothing, and what to read instead.

    tail index   1/alpha = (1/k) sum_{i=1..k} ln(x_(i) / x_(k+1))      the k = n/20 largest of n errors (Hill 1975)
                 error of alpha: alpha / sqrt(k);   P(X > x) ~ x^-alpha has no finite variance for alpha <= 2
    heavy        an error is not finite, or alpha - alpha / sqrt(k) < 2
    median       [x_(r), x_(n+1-r)] in ascending order, r the largest with P(Bin(n, 1/2) < r) <= 2.5 %
    IQM          mean of the middle half +- t_{h-1} s_w / (0.5 sqrt(n)),   h = n - 2 floor(n/4)

Symbols: s_w the standard deviation of the values after the lowest and the highest floor(n/4) are set to the nearest
value that is kept (Winsorised; Tukey and McLaughlin 1963, Yuen 1974). The median's interval holds for any continuous
distribution and any n. A value that is not finite counts as the largest error in both.

In simulations (600 values, 2000 samples) the normal interval of the mean holds it in 95 % for normal and exponential
values, in 91 % for log-normal ones with sigma = 1.5, in 75 % for a Pareto distribution with alpha = 1.5. The rule finds
99 % of the samples of the last two and less than 1 % of the exponential ones; among squared normal values 9 %, and
half of those of a log-normal distribution with sigma = 1, whose interval holds in 94 %.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metarun.report.statistics.intervals import Array, Estimate, Interval, iqm
from metarun.report.statistics.student import t_quantile

LARGEST = 20  # the k largest are one in so many
LEAST_VALUES = 200  # for a tail index; with fewer values k is below 10


class Tail(NamedTuple):
    alpha: float  # the tail index; NaN where it cannot be estimated
    error: float  # its standard error
    not_finite: int  # values

    @property
    def heavy(self) -> bool:
        """Whether the mean of the values may have no interval."""
        return self.not_finite > 0 or self.alpha - self.error < 2


def measure_tail(values: ArrayLike) -> Tail:
    """Estimate the tail index of errors, of which the large ones are the bad ones."""
    x = np.sort(np.asarray(values, dtype=np.float64).ravel())
    finite = np.isfinite(x)
    lost, k = int((~finite).sum()), len(x) // LARGEST
    if lost or len(x) < LEAST_VALUES or x[-k - 1] <= 0:
        return Tail(math.nan, math.nan, lost)
    mean_log = float(np.log(x[-k:] / x[-k - 1]).mean())
    alpha = 1 / mean_log if mean_log > 0 else math.inf
    return Tail(alpha, alpha / math.sqrt(k), 0)


def median_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Return the median and its interval by order statistics; NaN where there are too few values for one."""
    x = _failures_last(values)
    n = len(x)
    if not n:
        return Interval(math.nan, math.nan, math.nan)
    counts = np.arange(1, n + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log((n - counts + 1) / counts))])  # of n over c
    below = np.cumsum(np.exp(logs - n * math.log(2)))  # P(Bin(n, 1/2) <= c)
    rank = int(np.searchsorted(below, (1 - level) / 2, side="right"))
    low, high = (x[rank - 1], x[n - rank]) if rank else (math.nan, math.nan)
    middle = x[(n - 1) // 2], x[n // 2]
    return Interval(float(middle[0] if middle[0] == middle[1] else sum(middle) / 2), float(low), float(high))


def iqm_interval(values: ArrayLike, level: float = 0.95) -> Estimate:
    """Return the interquartile mean and half of its interval; NaN for fewer than four values."""
    x = _failures_last(values)
    n, cut = len(x), len(x) // 4
    if n < 4:
        return Estimate(iqm(x), math.nan)
    with np.errstate(invalid="ignore"):  # infinity - infinity, if a quarter of the values failed
        spread = float(np.clip(x, x[cut], x[n - 1 - cut]).std(ddof=1))
    return Estimate(iqm(x), t_quantile(0.5 + level / 2, n - 2 * cut - 1) * spread / (0.5 * math.sqrt(n)))


def _failures_last(values: ArrayLike) -> Array:
    """Ascending; what is not finite is infinite."""
    x = np.asarray(values, dtype=np.float64).ravel()
    return np.sort(np.where(np.isfinite(x), x, math.inf))
