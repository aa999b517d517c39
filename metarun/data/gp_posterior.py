r"""The exact posterior of a Gaussian process, in float64: what a learner that meets its functions can reach at best.

    mean of y_q = K_qs (K_ss + v I)^-1 y_s;    covariance of y_q = K_qq + v I - K_qs (K_ss + v I)^-1 K_sq

v is the noise variance, s are support points, q queries. The kernel's own parameters are those that the task was drawn
with, which a learner has to find out. All arrays have a leading T axis.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
LEVELS = (50, 90, 95)
"""Of the central bands whose coverage is told, in per cent."""
QUANTILES = (0.6744897501960817, 1.6448536269514722, 1.959963984540054)
"""Half-widths of these bands, in standard deviations."""


class Kernel(NamedTuple):
    """k of each task; the parameters [T]."""

    name: str
    smoothness: float
    length: Array
    amplitude: Array
    period: Array
    noise: Array  # standard deviation

    def between(self, a: Array, b: Array) -> Array:
        """k(a, b) [T, A, B] of places [T, A] and [T, B]."""
        length, scale, period = (v[:, None, None] for v in (self.length, self.amplitude, self.period))
        return scale**2 * self._shape(np.abs(a[:, :, None] - b[:, None, :]), length, period)

    def _shape(self, distance: Array, length: Array, period: Array) -> Array:
        if self.name == "rbf":
            return np.exp(-0.5 * (distance / length) ** 2)
        if self.name == "periodic":
            return np.exp(-2 * (np.sin(np.pi * distance / period) / length) ** 2)
        r = np.sqrt(2 * self.smoothness) * distance / length
        return (1 + r + (r**2 / 3 if self.smoothness == 2.5 else 0.0)) * np.exp(-r)

    def of_targets(self, x: Array) -> Array:
        """The covariance of noisy values at x, [T, S, S]."""
        return self.between(x, x) + self.noise[:, None, None] ** 2 * np.eye(x.shape[1])


class Prediction(NamedTuple):
    """Of noisy values at the queries."""

    mean: Array  # [T, M]
    covariance: Array  # [T, M, M]


def predicted(kernel: Kernel, support_x: Array, support_y: Array, query_x: Array) -> Prediction:
    factor = np.linalg.cholesky(kernel.of_targets(support_x))
    across = np.linalg.solve(factor, kernel.between(support_x, query_x))  # L^-1 K_sq
    whitened = np.linalg.solve(factor, support_y[..., None])
    mean = (across.swapaxes(1, 2) @ whitened)[..., 0]
    return Prediction(mean, kernel.of_targets(query_x) - across.swapaxes(1, 2) @ across)


def figures(found: Prediction, y: Array) -> dict[str, Array]:
    """Of each task [T]: log-likelihoods a point, of single points and of all together; MSE; coverage of bands."""
    variance = np.diagonal(found.covariance, axis1=1, axis2=2)
    away = y - found.mean
    single = -0.5 * (np.log(2 * np.pi * variance) + away**2 / variance)
    scores = np.abs(away) / np.sqrt(variance)
    covered = {f"coverage_{p}": (scores <= z).mean(1) for p, z in zip(LEVELS, QUANTILES, strict=True)}
    joint = joint_log_likelihood(found, y) / y.shape[1]
    return {
        "pointwise_log_likelihood": single.mean(1),
        "joint_log_likelihood": joint,
        "mse": (away**2).mean(1),
        **covered,
    }


def joint_log_likelihood(found: Prediction, y: Array) -> Array:
    """log N(y; mean, covariance), [T]."""
    factor = np.linalg.cholesky(found.covariance)
    whitened = np.linalg.solve(factor, (y - found.mean)[..., None])[..., 0]
    log_det = 2 * np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(1)
    return -0.5 * ((whitened**2).sum(1) + log_det + y.shape[1] * np.log(2 * np.pi))
