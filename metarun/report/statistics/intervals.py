r"""Intervals for a mean over tasks or over runs, the interquartile mean, and its bootstrap.

    normal     mean +- 1.96 s / sqrt(n)                 over the tasks of one test: n is in the hundreds
    t          mean +- t_{n-1} s / sqrt(n)              over training runs (seeds): n is 3 to 10, and 1.96 too small
    IQM        mean of the middle half of all values    no single run can carry it away, and half of them count

Symbols: s standard deviation with n - 1, R runs, M strata. All are in the unit of the scores.
IQM and stratified bootstrap as proposed by Agarwal et al. 2021, arXiv 2108.13264.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metarun.report.statistics.student import t_quantile

Array = NDArray[np.float64]

NORMAL_95 = 1.96
"""The factor that the literature uses."""


class Estimate(NamedTuple):
    mean: float
    half: float  # half-width of the interval; NaN where there is no spread to measure

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half


class Interval(NamedTuple):
    """An estimate whose interval need not be symmetric."""

    estimate: float
    low: float
    high: float


def normal_interval(values: ArrayLike) -> Estimate:
    """Return the mean and 1.96 standard errors."""
    mean, error, _ = mean_and_error(values)
    return Estimate(mean, NORMAL_95 * error)


def t_interval(values: ArrayLike, level: float = 0.95) -> Estimate:
    """Return the mean and the half-width of Student's interval."""
    mean, error, count = mean_and_error(values)
    return Estimate(mean, t_quantile(0.5 + level / 2, count - 1) * error if count > 1 else math.nan)


def welch_df(strata: Sequence[ArrayLike]) -> float:
    r"""Return the degrees of freedom of the standard error of a mean of M means, by Welch and Satterthwaite.

        error = sqrt(sum_m v_m) / M,   v_m = s_m^2 / n_m,   nu = (sum_m v_m)^2 / sum_m v_m^2 / (n_m - 1)

    Symbols: s_m, n_m standard deviation and number of the values of stratum m. NaN for fewer than two values in one,
    and where all values of each are equal. Satterthwaite 1946, An approximate distribution of estimates of variance
    components, Biometrics Bulletin 2.
    """
    found = [mean_and_error(values) for values in strata]
    v, n = (np.array(part) for part in ([error**2 for _, error, _ in found], [count for _, _, count in found]))
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(v.sum() ** 2 / (v**2 / (n - 1)).sum())


def mean_and_error(values: ArrayLike) -> tuple[float, float, int]:
    """Return mean, standard error s / sqrt(n) (NaN for fewer than two values) and n. A NaN in the values is kept."""
    x = np.asarray(values, dtype=np.float64).ravel()
    if len(x) < 2 or not np.isfinite(x).all():
        with np.errstate(invalid="ignore"):  # infinity - infinity
            return (float(x.mean()) if len(x) else math.nan), math.nan, len(x)
    return float(x.mean()), float(x.std(ddof=1)) / math.sqrt(len(x)), len(x)


def iqm(values: ArrayLike) -> float:
    """Return the interquartile mean of all values together (runs x tasks are pooled).

    The k-th smallest of n values weighs the overlap of [k-1, k] with [n/4, 3n/4], so that exactly half of the weight
    is cut off whatever n is. For n divisible by 4 this is the 25 % trimmed mean of scipy and rliable; otherwise
    theirs cuts off floor(n/4) whole values at each end and keeps more. NaN if any value is; an infinite one may be
    cut off.
    """
    x = np.sort(np.asarray(values, dtype=np.float64).ravel())
    count = len(x)
    if not count or np.isnan(x).any():
        return math.nan
    ends = np.clip(np.arange(count + 1), count / 4, 3 * count / 4)
    weights = np.diff(ends)
    kept = weights > 0  # 0 * infinity would be NaN
    return float(weights[kept] @ x[kept] / (count / 2))


def stratified_bootstrap(
    scores: ArrayLike, statistic: Callable[[Array], float], seed: int, draws: int = 2000, level: float = 0.95
) -> Interval:
    """Return the percentile interval of `statistic`, a function of scores [R, M] (or [R], one stratum).

    Each draw takes R runs with replacement, in every stratum anew. So the columns must be independent of one another,
    as where each stratum (a data set, say) was trained separately. The test tasks of one run are NOT strata, for they
    share its weights: average over them first. With few runs the percentile interval is too short, by sqrt((R-1)/R)
    and by the normal quantile in place of t's: for the mean of one stratum a 95 % interval holds about 84 % at R = 5
    and 90 % at R = 10, so that `t_interval` is the better one there. A single run has no interval.
    """
    values = np.asarray(scores, dtype=np.float64)
    values = values.reshape(len(values), -1)
    estimate = float(statistic(values))
    if len(values) < 2:
        return Interval(estimate, math.nan, math.nan)
    generator = np.random.default_rng(seed)
    resampled = np.empty(draws)
    for i in range(draws):
        rows = generator.integers(len(values), size=values.shape)
        resampled[i] = statistic(np.take_along_axis(values, rows, axis=0))
    if not np.isfinite(resampled).all():
        return Interval(estimate, math.nan, math.nan)
    low, high = np.quantile(resampled, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(estimate, float(low), float(high))
