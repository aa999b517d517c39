r"""Calibration of a classifier's probabilities, pooled over the queries of all test tasks.

Query m of task t has the largest probability c_tm, and a_tm is 1 where that class is right, else 0:

    overconfidence  mean of c - a, with the interval of its means over tasks
    error           sqrt(max(0, E2)): how far confidence is from accuracy, the root mean square over `BINS` bins of c,
                    each with as many queries
        E2 = sum_b (1 / p_b) (1 / (T (T - 1))) sum_{s != t} d_sb d_tb,    d_tb = (1/M) sum_{m in b} (c_tm - a_tm)
    plain_error     with s = t as well, and 1 / T^2: sqrt(sum_b p_b (mean of c - mean of a in b)^2), biased upwards
    brier           mean over queries of sum_k (p_k - [y = k])^2 (Brier 1950), 0 to 2
    coverage        share of the queries whose class is among the fewest classes with at least `LEVEL` probability
    set_size        the mean number of these classes

The plain error is above 0 for a calibrated classifier too, since the means of a bin are noisy. Kumar, Liang and Ma 2019
(arXiv 1909.10155) subtract the variance of these means for independent rows. The queries of a task share its support
set and are alike, so the variance here is that over tasks: products of two different tasks have the right mean. (They
also take the confidence of a bin for all its rows; here it varies with the rows.)

Symbols: T tasks, M queries a task, p_b share of the queries in bin b. All numbers but the Brier score are shares.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from metarun.report.statistics.intervals import Array, normal_interval

BINS = 15
LEVEL = 0.9


def describe_calibration(
    confidence: Array, correct: Array, brier: Array, covered: Array, set_size: Array
) -> dict[str, Any]:
    """Summarise confidences and hits [T, M], and of each task the Brier score, coverage and set size [T]."""
    confidence, correct = (np.asarray(v, dtype=np.float64) for v in (confidence, correct))
    over, score = normal_interval((confidence - correct).mean(1)), normal_interval(brier)
    squared, plain, rows = squared_error(confidence, correct)
    return {
        "overconfidence": over.mean,
        "overconfidence_ci95": over.half,
        "error": math.sqrt(max(0.0, squared)),
        "plain_error": math.sqrt(plain),
        "brier": score.mean,
        "brier_ci95": score.half,
        "level": LEVEL,
        "coverage": float(np.mean(covered)),
        "set_size": float(np.mean(set_size)),
        "bins": rows,
    }


def squared_error(confidence: Array, correct: Array, bins: int = BINS) -> tuple[float, float, list[dict[str, float]]]:
    """E2 without bias, the plain one, and the mean confidence and accuracy of each bin; two tasks or more."""
    tasks, queries = confidence.shape
    bins = min(bins, confidence.size)  # no empty ones
    order = np.argsort(confidence, axis=None, kind="stable")
    bin_of = np.empty(confidence.size, dtype=np.int64)
    bin_of[order] = np.arange(confidence.size) * bins // confidence.size
    gap, label = confidence - correct, bin_of.reshape(confidence.shape)
    unbiased, plain, rows = 0.0, 0.0, []
    for b in range(bins):
        inside = label == b
        share, by_task = float(inside.mean()), (gap * inside).sum(1) / queries
        total, own = float(by_task.sum()) ** 2, float(by_task @ by_task)
        plain += total / tasks**2 / share
        unbiased += (total - own) / (tasks * (tasks - 1)) / share if tasks > 1 else math.nan
        means = (float(v[inside].mean()) for v in (confidence, correct))
        rows.append(dict(zip(("confidence", "accuracy"), means, strict=True)))
    return unbiased, plain, rows
