r"""Aggregated moments of activations, and when those of two sets of inputs part in the course of training.

Of the activations h [B, D] of a layer on B inputs, with the mean of each feature mu_j = mean_i h_ij:

    mean             mean_j mu_j
    squared_mean     mean_j mu_j^2
    square           mean_ij h_ij^2
    cross            mean over i and pairs j != k of h_ij h_ik;  0 where D = 1

Of the trajectories s and t [n] of one of them on two sets of inputs, measured n times until the end of an interval:

    score(a) = -rho(t_a .. t_n, s_a .. s_n) (n - a + 2),    a = 1, 2, ... n - 2

rho is Pearson's correlation, 0 where a trajectory does not change. The two part at the a of the largest score, if it is
above 0. Intervals of fewer than three measurements do not count: two points correlate by 1 or -1.

Guiroy, Pal, Mordido, Chandar 2022, Improving meta-learning generalization with activation-based early-stopping, arXiv
2208.02377, eq. 3 and 4; the width n - a + 2 is that of its released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

MOMENTS = ("mean", "squared_mean", "square", "cross")
FEWEST = 3
"""Measurements that a correlation is taken of."""


def aggregate_moments(h_BD: Tensor) -> dict[str, float]:
    """The four moments of one layer."""
    h_BD = h_BD.double()
    B, D = h_BD.shape
    mu_D, squares = h_BD.mean(0), h_BD.square().sum()
    pairs = h_BD.sum(1).square().sum() - squares  # over rows, of all ordered pairs of different features
    values = mu_D.mean(), mu_D.square().mean(), squares / (B * D), pairs / (B * max(D * (D - 1), 1))
    return dict(zip(MOMENTS, map(float, values), strict=True))


class Parting(NamedTuple):
    """Where two trajectories part: the number of the first measurement, from 0, of the interval."""

    start: int
    correlation: float
    score: float


def find_parting(target: Sequence[float], source: Sequence[float]) -> Parting | None:
    """The interval of the largest score; None if no correlation is negative."""
    found = None
    for a in range(len(target) - FEWEST + 1):
        rho = correlation(target[a:], source[a:])
        score = -rho * (len(target) - a + 1)
        if score > (found.score if found else 0):
            found = Parting(a, rho, score)
    return found


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's; 0 where one does not change, or is not finite."""
    a, b = (np.asarray(v, dtype=np.float64) - np.mean(v) for v in (x, y))
    norm = np.sqrt(a @ a) * np.sqrt(b @ b)
    return float(a @ b / norm) if np.isfinite(norm) and norm > 0 else 0.0
