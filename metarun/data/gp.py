r"""Functions drawn from Gaussian processes: y = f(x) + noise, f ~ GP(0, k), one function a task.

    rbf        k(x, x') = s^2 exp(-d^2 / (2 l^2)),   d = |x - x'|
    matern     s^2 (1 + a) exp(-a), a = sqrt(3) d / l (smoothness 1.5);
               s^2 (1 + a + a^2/3) exp(-a), a = sqrt(5) d / l (smoothness 2.5)
    periodic   s^2 exp(-2 sin^2(pi d / p) / l^2)

Symbols: l `length_scale`, s `amplitude` (a standard deviation), p `period`, each fixed ([a, a]) or uniform in
[low, high] for each task; noise ~ N(0, noise^2); x ~ U[x_range]. The K + Q points of a task are drawn together and
exactly, as L e with L the Cholesky factor of k(x, x) + noise^2 I in float64 and e ~ N(0, I). Below 1e-4 s the noise
is raised to that: the matrix of points that lie close together has no factor otherwise.

Garnelo et al. 2018 (arXiv 1807.01613) train on rbf with l = 0.4, s = 1, noise 0.02, x ~ U[-2, 2]; Kim et al. 2019
(arXiv 1901.05761) draw l ~ U[0.1, 0.6] and s ~ U[0.1, 1].

The oracle is the exact posterior, in float64:

    mean of y_q = K_qs (K_ss + v I)^-1 y_s;    covariance of y_q = K_qq + v I - K_qs (K_ss + v I)^-1 K_sq

with v the noise variance, s support points, q queries. It knows the parameters of the task's kernel, which a learner
has to infer. All its arrays have a leading T axis.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.compute.random import Bits, bits_of_steps, normal, random_bits, uniform
from metarun.data.prefetch import EpisodePrefetcher, as_column, split_points
from metarun.errors import require
from metarun.types import EpisodeSpec, Kind, Split, Task

Array = NDArray[np.floating]

KERNELS = ("rbf", "matern", "periodic")
SMOOTHNESS = (1.5, 2.5)
OWN_WORDS = 3  # length scale, amplitude, period
POINT_WORDS = 3  # x, and two for a normal number
LEAST_NOISE = 1e-4  # times the amplitude
LEVELS = (50, 90, 95)  # of the central intervals whose coverage is measured, in percent
QUANTILES = (0.6744897501960817, 1.6448536269514722, 1.959963984540054)  # their half-widths in standard deviations


@dataclass(frozen=True)
class GaussianProcess:
    kernel: str
    length_scale: tuple[float, float]
    amplitude: tuple[float, float]
    noise: float
    x_range: tuple[float, float]
    smoothness: float = 2.5
    period: tuple[float, float] = (1.0, 1.0)

    kind: ClassVar[Kind] = "regression"

    def __post_init__(self) -> None:
        require(self.kernel in KERNELS, "kernel", self.kernel, "choices: " + ", ".join(KERNELS))
        smoothness = self.smoothness
        require(smoothness in SMOOTHNESS, "smoothness", smoothness, "choices: 1.5, 2.5 (of kernel=matern)")
        for name in ("length_scale", "amplitude", "period"):
            ends = getattr(self, name)
            positive = len(ends) == 2 and 0 < ends[0] <= ends[1] < math.inf
            require(positive, name, list(ends), "must be [low, high], above 0 and finite, with low <= high")
        ends = self.x_range
        ordered = len(ends) == 2 and -math.inf < ends[0] < ends[1] < math.inf
        require(ordered, "x_range", list(ends), "must be [low, high], finite, with low < high")
        require(0 <= self.noise < math.inf, "noise", self.noise, "must be at least 0 and finite")

    def input_shape(self) -> tuple[int, ...]:
        return (1,)

    def outputs(self, ways: int) -> int:
        return 1

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        """Accept every size: any number of points can be drawn."""

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        return self._prefetcher(split, seed, step, tasks, spec)

    @functools.cached_property
    def _prefetcher(self) -> EpisodePrefetcher:
        return EpisodePrefetcher(self._draw)

    def _draw(self, split: Split, seed: int, steps: range, tasks: range, spec: EpisodeSpec) -> list[Task]:
        points = spec.shots + spec.queries
        bits = bits_of_steps(split, seed, steps, tasks, OWN_WORDS + POINT_WORDS * points)
        where, first, second = np.split(bits[:, OWN_WORDS:], POINT_WORDS, axis=1)
        x = uniform(where, *self.x_range)
        factor = np.linalg.cholesky(self._kernel(bits).target_covariance(x))
        y = (factor @ normal(first, second)[..., None])[..., 0]
        return split_points(as_column(x), as_column(y), len(steps), spec.shots)

    def _kernel(self, bits: Bits) -> Kernel:
        """The kernel of each task, from its random words [T, W]."""
        ranges = (self.length_scale, self.amplitude, self.period)
        length, amplitude, period = (uniform(bits[:, i], *ends) for i, ends in enumerate(ranges))
        noise = np.maximum(self.noise, LEAST_NOISE * amplitude)
        return Kernel(self.kernel, self.smoothness, length, amplitude, period, noise)

    def task_kernels(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Kernel:
        """The kernels from which the functions of these tasks were drawn."""
        words = OWN_WORDS + POINT_WORDS * (spec.shots + spec.queries)
        return self._kernel(random_bits(split, seed, step, tasks, words))

    def oracle(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> dict[str, Tensor]:
        """The metrics of the exact posterior on the queries, [T]."""
        (support_x, support_y), (query_x, query_y) = self._arrays(split, seed, step, tasks, spec)
        kernel = self.task_kernels(split, seed, step, tasks, spec)
        metrics = score(condition(kernel, support_x, support_y, query_x), query_y)
        return {name: torch.from_numpy(values) for name, values in metrics.items()}

    def oracle_band(
        self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec, x: Array
    ) -> tuple[Array, Array]:
        """Mean and standard deviation of the exact posterior of y at the inputs x [G], each [T, G]."""
        (support_x, support_y), _ = self._arrays(split, seed, step, tasks, spec)
        inputs = np.broadcast_to(x, (len(tasks), len(x)))
        kernel = self.task_kernels(split, seed, step, tasks, spec)
        mean, covariance = condition(kernel, support_x, support_y, inputs)
        return mean, np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))

    def _arrays(self, *episode: Any) -> list[list[Array]]:
        return [[v[..., 0].double().numpy() for v in batch] for batch in self.episodes(*episode)]

    def reference_inputs(self, count: int) -> Tensor:
        return as_column(np.linspace(*self.x_range, count))

    def facts(self) -> dict[str, Any]:
        ranges = {name: list(getattr(self, name)) for name in ("length_scale", "amplitude", "x_range")}
        own: dict[str, Any] = {"period": list(self.period)} if self.kernel == "periodic" else {}
        own |= {"smoothness": self.smoothness} if self.kernel == "matern" else {}
        return {"split": "sampled", "split_sha256": None, "kernel": self.kernel, **ranges, **own, "noise": self.noise}


class Kernel(NamedTuple):
    """The kernel of each task; its parameters have shape [T]."""

    name: str
    smoothness: float
    length: Array
    amplitude: Array
    period: Array
    noise: Array  # standard deviation

    def covariance(self, a: Array, b: Array) -> Array:
        """k(a, b) [T, A, B] of inputs [T, A] and [T, B]."""
        length, scale, period = (v[:, None, None] for v in (self.length, self.amplitude, self.period))
        distance = np.abs(a[:, :, None] - b[:, None, :])
        if self.name == "rbf":
            return scale**2 * np.exp(-0.5 * (distance / length) ** 2)
        if self.name == "periodic":
            return scale**2 * np.exp(-2 * (np.sin(np.pi * distance / period) / length) ** 2)
        r = np.sqrt(2 * self.smoothness) * distance / length
        return scale**2 * ((1 + r + (r**2 / 3 if self.smoothness == 2.5 else 0.0)) * np.exp(-r))

    def target_covariance(self, x: Array) -> Array:
        """The covariance [T, S, S] of noisy targets at inputs x [T, S]."""
        return self.covariance(x, x) + self.noise[:, None, None] ** 2 * np.eye(x.shape[1])


class Posterior(NamedTuple):
    """The distribution of noisy targets at the queries."""

    mean: Array  # [T, M]
    covariance: Array  # [T, M, M]


def condition(kernel: Kernel, support_x: Array, support_y: Array, query_x: Array) -> Posterior:
    """The posterior at queries [T, M], given support points [T, K]."""
    factor = np.linalg.cholesky(kernel.target_covariance(support_x))
    across = np.linalg.solve(factor, kernel.covariance(support_x, query_x))  # L^-1 K_sq
    whitened = np.linalg.solve(factor, support_y[..., None])
    mean = (across.swapaxes(1, 2) @ whitened)[..., 0]
    return Posterior(mean, kernel.target_covariance(query_x) - across.swapaxes(1, 2) @ across)


def score(posterior: Posterior, y: Array) -> dict[str, Array]:
    """The metrics of targets y [T, M], each [T]: log-likelihoods per point, marginal and joint; MSE; coverage of the
    central intervals."""
    variance = np.diagonal(posterior.covariance, axis1=1, axis2=2)
    error = y - posterior.mean
    pointwise = -0.5 * (np.log(2 * np.pi * variance) + error**2 / variance)
    z_scores = np.abs(error) / np.sqrt(variance)
    coverage = {f"coverage_{p}": (z_scores <= z).mean(1) for p, z in zip(LEVELS, QUANTILES, strict=True)}
    return {
        "pointwise_log_likelihood": pointwise.mean(1),
        "joint_log_likelihood": joint_log_likelihood(posterior, y) / y.shape[1],
        "mse": (error**2).mean(1),
        **coverage,
    }


def joint_log_likelihood(posterior: Posterior, y: Array) -> Array:
    """log N(y; mean, covariance), [T]."""
    factor = np.linalg.cholesky(posterior.covariance)
    whitened = np.linalg.solve(factor, (y - posterior.mean)[..., None])[..., 0]
    log_det = 2 * np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(1)
    return -0.5 * ((whitened**2).sum(1) + log_det + y.shape[1] * np.log(2 * np.pi))
