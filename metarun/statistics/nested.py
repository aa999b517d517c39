r"""How much of the spread of scores lies between groups, and how much between repetitions inside of a group.

    x_tr = mu + b_t + e_tr,   t = 1..T groups, r = 1..R repetitions, which have nothing in common across groups
    MS_between = R sum_t (x_t. - x..)^2 / (T-1),   MS_within = sum_tr (x_tr - x_t.)^2 / (T (R-1))
    var e = MS_within,   var b = (MS_between - MS_within) / R,   share = var e / (var b + var e)

One-way random effects, balanced, by the method of moments (Searle, Casella and McCulloch 1992, Variance Components,
chapter 3). Symbols: x_t. mean of a group, x.. of all. Variances are in the squared unit of the scores. The interval of
the share is the percentile one of a bootstrap that takes whole groups with replacement.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 2000


class Nested(NamedTuple):
    mean: float
    between: float  # variance between groups, not below 0
    within: float  # variance between the repetitions of a group
    between_raw: float  # before the cut at 0: unbiased, may be negative
    share: float  # of `within` in the sum; NaN where nothing varies
    low: float  # ends of its 95 % interval
    high: float
    groups: int
    repetitions: int


def nested_components(scores: ArrayLike, seed: int = 0) -> Nested:
    """Components of scores [T, R]; `ValueError` for fewer than two groups or two repetitions."""
    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != 2 or min(x.shape) < 2:
        raise ValueError(f"needs scores of at least two groups with two repetitions each, got shape {x.shape}")
    between, within = (float(v[0]) for v in _components(x[None]))
    rows = np.random.default_rng(seed).integers(len(x), size=(DRAWS, len(x)))
    shares = _share(*_components(x[rows]))
    found = shares[np.isfinite(shares)]
    low, high = np.quantile(found, [0.025, 0.975]) if len(found) else (math.nan, math.nan)
    share = float(_share(np.array(between), np.array(within)))
    return Nested(float(x.mean()), max(between, 0.0), within, between, share, float(low), float(high), *x.shape)


def _components(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """var b (uncut) and var e of each of [B, T, R]."""
    repetitions = x.shape[2]
    within = x.var(axis=2, ddof=1).mean(1)
    return x.mean(2).var(axis=1, ddof=1) - within / repetitions, within


def _share(between: NDArray[np.float64], within: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return within / (np.maximum(between, 0) + within)
