r"""The noise scale of the meta-gradient: how many tasks a step are worth their cost.

    B = tr Cov / |G|^2,   Cov of one task's meta-gradient, G its mean over all tasks
    1 / B = mean_k (|g_k|^2 - v_k / T) / mean_k v_k      over the training records k of the last half of a run

Symbols: T tasks of a step, g_k their mean meta-gradient (`grad_norm`), v_k its unbiased tr Cov (`grad_variance`). This
is the simple noise scale of McCandlish et al. 2018 (arXiv 1812.06162), means of numerator and denominator apart, as
there. With the best rate for each batch, a step of T tasks makes 1 / (1 + B / T) of the progress of one without noise,
and a given progress costs 1 + T / B times the fewest tasks: below B more tasks a step save steps, above B they do
little. The simple scale takes the Hessian for a multiple of I, and says nothing of Adam's own averaging: read it as an
order of magnitude.

1 / B has the 95 % interval of a jackknife over `BLOCKS` blocks of consecutive records, which may reach below 0: then no
number of tasks is too many, as far as the records show.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metarun.report.statistics.student import t_quantile

BLOCKS = 10


class NoiseScale(NamedTuple):
    tasks: float | None  # B; None where 1 / B came out at 0 or below
    low: float | None
    high: float | None  # None: no bound
    used: int  # T
    records: int


def fit_noise_scale(norms: ArrayLike, variances: ArrayLike, tasks: int) -> NoiseScale | None:
    """Return the noise scale of the last half of the records [R]; None for fewer than 20, or a variance of 0."""
    length, variance = np.asarray(norms, dtype=np.float64), np.asarray(variances, dtype=np.float64)
    known = np.flatnonzero(np.isfinite(length) & np.isfinite(variance))
    if len(known) < 2 * BLOCKS:
        return None
    known = known[len(known) // 2 :]
    if not variance[known].sum() > 0:
        return None
    signal, variance = length[known] ** 2 - variance[known] / tasks, variance[known]
    blocks = np.array_split(np.arange(len(known)), BLOCKS)
    left_out = np.array([np.delete(signal, b).mean() / np.delete(variance, b).mean() for b in blocks])
    error = math.sqrt((BLOCKS - 1) / BLOCKS * float(np.square(left_out - left_out.mean()).sum()))
    inverse, half = float(signal.mean() / variance.mean()), t_quantile(0.975, BLOCKS - 1) * error
    scale, low, high = (1 / v if v > 0 else None for v in (inverse, inverse + half, inverse - half))
    return NoiseScale(scale, low, high, tasks, len(known))
