r"""How fast a curve falls: the least-squares line, and the rate at which the squared gradient norm falls.

    line       y = intercept + slope x,   half = t_{n-2} sqrt(RSS / (n-2) / sum (x - mean x)^2)
    rate       slope of log v_k on log step_k,    v_k = |grad F(theta_k)|^2 on fixed probe tasks: v ~ step^slope
    best       the same slope for min over j <= k of v_j

Rates of convergence to a stationary point are stated for min_j |grad F|^2: of order 1/t for gradient descent,
1/sqrt(t) for stochastic gradients (Ghadimi and Lan 2013, arXiv 1309.5549), for MAML in Fallah et al. 2020, arXiv
1908.10400. They are worst cases, to be read beside the fitted slope and not as a verdict on it.

What the intervals are worth. A minimum over noisy values selects lucky ones, and falls faster than what it measures: in
simulations (8 to 100 points of k^-0.5 or k^-1 with log-normal noise of 0.5, independent or with autocorrelation 0.8)
by 0.10 to 0.23, so that no interval around `best_slope` covers the slope of the norm itself. `slope`, of the values,
has no such bias. Neighbouring values resemble each other, so the line's own t interval, which takes residuals for
independent, is too short. The delete-block jackknife leaves out one of `BLOCKS` runs of consecutive points at a time:

    half = t_{B-1} sqrt((B-1)/B sum_b (slope_(b) - mean_b slope_(b))^2)

In those simulations (2500 curves each) it holds the true slope in 95 % of curves of 20 points or more with an
autocorrelation up to 0.5; with 0.8 in 91, 93 and 95 % for 20, 50 and 100 points, and in 88 % for 8. The t interval
holds it in 52 to 68 % with 0.8.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metarun.report.statistics.intervals import Array
from metarun.report.statistics.student import t_quantile

LEAST_POINTS = 5
BLOCKS = 5


class Line(NamedTuple):
    slope: float
    half: float  # of the slope's 95 % interval; NaN for two points
    intercept: float
    r2: float  # share of the variance explained; NaN where y does not vary
    points: int


class Rate(NamedTuple):
    slope: float  # exponent of the squared norm in steps; no unit
    half: float  # of its 95 % interval, by the delete-block jackknife
    half_if_independent: float  # by the line's t interval: too short
    r2: float
    points: int
    best_slope: float  # of the smallest value so far; biased downwards by noise, so without an interval
    floor_step: int | None  # where a debiased value first came out at 0 or below; the fit ends before it


class Stationarity(NamedTuple):
    smallest: float  # squared norm; debiased, so it may be below 0
    step: int
    epsilon: float  # its root, or 0 where it is below 0: no more than noise is left


def fit_line(x: ArrayLike, y: ArrayLike) -> Line | None:
    """Fit a line by least squares; None for fewer than two different x."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    n = len(x)
    dx, dy = x - x.mean() if n else x, y - y.mean() if n else y
    if not dx.any():
        return None
    slope = _slope(x, y)
    rest, total = float(np.square(dy - slope * dx).sum()), float(dy @ dy)
    half = t_quantile(0.975, n - 2) * math.sqrt(rest / (n - 2) / float(dx @ dx)) if n > 2 else math.nan
    return Line(slope, half, float(y.mean() - slope * x.mean()), 1 - rest / total if total else math.nan, n)


def best_so_far(values: ArrayLike) -> Array:
    """Running minimum; a NaN is passed over (and stays NaN before the first number)."""
    return np.fmin.accumulate(np.asarray(values, dtype=np.float64))


def fit_rate(steps: ArrayLike, squared_norms: ArrayLike) -> Rate | None:
    """Fit the rate of squared norms; None if fewer than five points can be used.

    Missing values and step 0 (which has no logarithm) are left out. A debiased estimate at or below 0 says that the
    norm is too small for the probe tasks to show: the fit ends before the first of them.
    """
    t, v = _drop_missing(steps, squared_norms)
    floor = np.flatnonzero(v <= 0)
    end = floor[0] if len(floor) else len(v)
    x, y, best = (u[:end][t[:end] > 0] for u in (t, v, best_so_far(v)))
    line = fit_line(np.log(x), np.log(y)) if len(x) >= LEAST_POINTS else None
    if line is None:
        return None
    half, floor_step = jackknife_half(np.log(x), np.log(y)), int(t[end]) if len(floor) else None
    return Rate(line.slope, half, line.half, line.r2, line.points, _slope(np.log(x), np.log(best)), floor_step)


def epsilon_stationarity(steps: ArrayLike, squared_norms: ArrayLike) -> Stationarity | None:
    """Return the smallest squared norm, its step and its root; None without values. Noise biases it low."""
    t, v = _drop_missing(steps, squared_norms)
    if not len(v):
        return None
    k = int(v.argmin())
    return Stationarity(float(v[k]), int(t[k]), math.sqrt(max(float(v[k]), 0.0)))


def _drop_missing(steps: ArrayLike, values: ArrayLike) -> tuple[Array, Array]:
    """Return both without the points whose value is missing, in order of steps."""
    t, v = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    order = np.argsort(t, kind="stable")
    order = order[np.isfinite(v[order])]
    return t[order], v[order]


def jackknife_half(x: Array, y: Array) -> float:
    """Half-width of the 95 % interval of the slope of y on x, by the delete-block jackknife; at least `LEAST_POINTS`
    points, whose x are all different, so that the remaining ones always have a slope."""
    blocks = np.array_split(np.arange(len(x)), BLOCKS)
    slopes = np.array([_slope(np.delete(x, block), np.delete(y, block)) for block in blocks])
    error = math.sqrt((BLOCKS - 1) / BLOCKS * float(np.square(slopes - slopes.mean()).sum()))
    return t_quantile(0.975, BLOCKS - 1) * error


def _slope(x: Array, y: Array) -> float:
    dx = x - x.mean()
    return float(dx @ (y - y.mean()) / (dx @ dx))
