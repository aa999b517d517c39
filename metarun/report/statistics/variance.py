r"""Variance components: the parts of the spread of scores that come from seeds, tasks, groups or repetitions.

Crossed. The same T test tasks are scored after each of R training runs that differ in their seed alone. Two-way random
effects without replication:

    x_rt = mu + a_r + b_t + e_rt          var a = seed, var b = task, var e = residual (interaction and noise)
    MS_seed = T sum_r (x_r. - x..)^2 / (R-1)
    MS_task = R sum_t (x_.t - x..)^2 / (T-1)
    MS_res  = sum_rt (x_rt - x_r. - x_.t + x..)^2 / ((R-1)(T-1))
    seed = (MS_seed - MS_res) / T,   task = (MS_task - MS_res) / R,   residual = MS_res
    var(x..) = seed/R + task/T + residual/(R T)

Nested. Each of T groups has R repetitions, which have nothing in common across groups. One-way random effects:

    x_tr = mu + b_t + e_tr,   t = 1..T groups, r = 1..R repetitions
    MS_between = R sum_t (x_t. - x..)^2 / (T-1),   MS_within = sum_tr (x_tr - x_t.)^2 / (T (R-1))
    var e = MS_within,   var b = (MS_between - MS_within) / R,   share = var e / (var b + var e)

Both are balanced and by the method of moments (Searle, Casella and McCulloch 1992, Variance Components, chapters 4 and
3). Symbols: x.. grand mean; x_r., x_.t and x_t. means of a run, a task and a group. Components are in the squared unit
of the scores. The interval of the share is the percentile one of a bootstrap that draws whole groups with replacement.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metarun.report.statistics.intervals import Array
from metarun.report.statistics.student import t_quantile

DRAWS = 2000


class Components(NamedTuple):
    mean: float  # over runs and tasks
    seed: float  # variance, not below 0
    task: float  # variance, not below 0
    residual: float  # variance
    seed_raw: float  # before the cut at 0: an unbiased estimate that may be negative
    task_raw: float
    standard_error: float  # of the mean, for new seeds and new tasks alike
    df: float  # of that standard error (Satterthwaite)
    half: float  # t quantile at 95 % times the standard error
    runs: int
    tasks: int


def variance_components(scores: ArrayLike) -> Components:
    """Estimate the crossed components of scores [R, T]; `ValueError` for fewer than two runs or two tasks."""
    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != 2 or min(x.shape) < 2:
        raise ValueError(f"needs scores of at least two runs on at least two tasks, got shape {x.shape}")
    runs, tasks = x.shape
    mean, x = float(x.mean()), x - x.mean()
    by_run, by_task = x.mean(1, keepdims=True), x.mean(0, keepdims=True)
    ms_seed = tasks * float((by_run**2).sum()) / (runs - 1)
    ms_task = runs * float((by_task**2).sum()) / (tasks - 1)
    ms_residual = float(((x - by_run - by_task) ** 2).sum()) / ((runs - 1) * (tasks - 1))
    seed_raw, task_raw = (ms_seed - ms_residual) / tasks, (ms_task - ms_residual) / runs
    # With the components cut at 0, R T var(x..) is this sum of mean squares: a cut component takes its own out of it.
    with_seed, with_task = float(seed_raw > 0), float(task_raw > 0)
    parts = (with_seed * ms_seed, with_task * ms_task, (1 - with_seed - with_task) * ms_residual)
    error = math.sqrt(sum(parts) / (runs * tasks))
    # Satterthwaite: the chi-square with the mean and the variance of the sum of independent mean squares.
    spread = sum(p * p / d for p, d in zip(parts, (runs - 1, tasks - 1, (runs - 1) * (tasks - 1)), strict=True))
    df = sum(parts) ** 2 / spread if spread else math.nan
    half = t_quantile(0.975, df) * error if df > 0 else error
    cut = max(seed_raw, 0.0), max(task_raw, 0.0)
    return Components(mean, *cut, ms_residual, seed_raw, task_raw, error, df, half, runs, tasks)


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
    """Estimate the nested components of scores [T, R]; `ValueError` for fewer than two groups or two repetitions."""
    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != 2 or min(x.shape) < 2:
        raise ValueError(f"needs scores of at least two groups with two repetitions each, got shape {x.shape}")
    rows = np.random.default_rng(seed).integers(len(x), size=(DRAWS, len(x)))
    # The scores themselves come first, then those of the bootstrap: each [B, T, R].
    (between, within, share), (_, _, shares) = (_between_within_share(scores) for scores in (x[None], x[rows]))
    finite = shares[np.isfinite(shares)]
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (math.nan, math.nan)
    raw = float(between[0])
    return Nested(
        float(x.mean()), max(raw, 0.0), float(within[0]), raw, float(share[0]), float(low), float(high), *x.shape
    )


def _between_within_share(x: Array) -> tuple[Array, Array, Array]:
    """var b (not cut at 0), var e and the share [B] of scores [B, T, R]."""
    within = x.var(axis=2, ddof=1).mean(1)
    between = x.mean(2).var(axis=1, ddof=1) - within / x.shape[2]
    with np.errstate(invalid="ignore", divide="ignore"):
        return between, within, within / (np.maximum(between, 0) + within)
