r"""The worst tasks of a test: the mean of the worst share of them (conditional value at risk), and its interval.

    CVaR_alpha = min_q  q + (1/alpha) E max(0, e - q),     the minimum at q, the (1 - alpha) quantile of the error e
    half = 1.96 sd(max(0, e - q)) / (alpha sqrt(T))

e is the error of a task: the metric itself, or its negative where more is better. Rockafellar and Uryasev 2000, Journal
of Risk 2, theorem 1; the half-width is that of the mean at the estimated q, whose own error counts to second order
only. Collins, Mokhtari, Shakkottai 2020 (arXiv 2002.04766) and Wang et al. 2023 (arXiv 2310.00708) train for it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from metarun.report.statistics.intervals import NORMAL_95, Array

WORST = 0.1
LEAST_TASKS = 20


class WorstTasks(NamedTuple):
    share: float  # alpha
    mean: float  # CVaR, in the metric's sign
    half: float
    worst: float  # of a single task


def measure_worst(scores: Array, higher_is_better: bool, share: float = WORST) -> WorstTasks | None:
    """Return the mean over the worst share of tasks [T]; None for fewer than 20, or errors that are not finite."""
    errors = -np.asarray(scores, dtype=np.float64) if higher_is_better else np.asarray(scores, dtype=np.float64)
    if len(errors) < LEAST_TASKS or not np.isfinite(errors).all():
        return None
    start = np.sort(errors)[math.ceil((1 - share) * len(errors)) - 1]
    beyond = np.maximum(0.0, errors - start)
    sign = -1.0 if higher_is_better else 1.0
    half = NORMAL_95 * float(beyond.std(ddof=1)) / (share * math.sqrt(len(errors)))
    return WorstTasks(share, sign * float(start + beyond.mean() / share), half, sign * float(errors.max()))
