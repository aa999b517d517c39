r"""How much of the spread of test scores is due to the training seed, to the test task, and to both together.

The same T test tasks are scored after each of R training runs that differ in their seed alone. Two-way random effects
without replication:

    x_rt = mu + a_r + b_t + e_rt          var a = seed, var b = task, var e = residual (interaction and noise)
    MS_seed = T sum_r (x_r. - x..)^2 / (R-1)
    MS_task = R sum_t (x_.t - x..)^2 / (T-1)
    MS_res  = sum_rt (x_rt - x_r. - x_.t + x..)^2 / ((R-1)(T-1))
    seed = (MS_seed - MS_res) / T,   task = (MS_task - MS_res) / R,   residual = MS_res
    var(x..) = seed/R + task/T + residual/(R T)

Method of moments (Searle, Casella and McCulloch 1992, Variance Components, chapter 4). Symbols: x.. grand mean, x_r.
mean of a run, x_.t of a task. Components are in the squared unit of the scores.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metarun.statistics.student import t_quantile


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
    """Components of scores [R, T]; `ValueError` for fewer than two runs or two tasks."""
    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != 2 or min(x.shape) < 2:
        raise ValueError(f"needs scores of at least two runs on at least two tasks, got shape {x.shape}")
    runs, tasks = x.shape
    ms_seed, ms_task, ms_residual = _mean_squares(x)
    seed_raw, task_raw = (ms_seed - ms_residual) / tasks, (ms_task - ms_residual) / runs
    # With the components cut at 0, R T var(x..) is this sum of mean squares: a cut component takes its own out of it.
    with_seed, with_task = float(seed_raw > 0), float(task_raw > 0)
    parts = (with_seed * ms_seed, with_task * ms_task, (1 - with_seed - with_task) * ms_residual)
    error = math.sqrt(sum(parts) / (runs * tasks))
    df = _satterthwaite(parts, (runs - 1, tasks - 1, (runs - 1) * (tasks - 1)))
    half = t_quantile(0.975, df) * error if df > 0 else error
    cut = max(seed_raw, 0.0), max(task_raw, 0.0)
    return Components(float(x.mean()), *cut, ms_residual, seed_raw, task_raw, error, df, half, runs, tasks)


def _mean_squares(x: np.ndarray) -> tuple[float, float, float]:
    """MS of seeds, of tasks and of the residual."""
    runs, tasks = x.shape
    x = x - x.mean()
    by_run, by_task = x.mean(1, keepdims=True), x.mean(0, keepdims=True)
    residual = x - by_run - by_task
    seed = tasks * float((by_run**2).sum()) / (runs - 1)
    task = runs * float((by_task**2).sum()) / (tasks - 1)
    return seed, task, float((residual**2).sum()) / ((runs - 1) * (tasks - 1))


def _satterthwaite(parts: tuple[float, ...], df: tuple[int, ...]) -> float:
    """Degrees of freedom of a sum of independent mean squares: the chi-square with its mean and variance."""
    spread = sum(p * p / d for p, d in zip(parts, df, strict=True))
    return sum(parts) ** 2 / spread if spread else math.nan
