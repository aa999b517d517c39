r"""Functions drawn from Gaussian processes: y = f(x) + noise, f ~ GP(0, k), one function a task.

    rbf        k(x, x') = s^2 exp(-d^2 / (2 l^2)),   d = |x - x'|
    matern     s^2 (1 + a) exp(-a), a = sqrt(3) d / l (smoothness 1.5);
               s^2 (1 + a + a^2/3) exp(-a), a = sqrt(5) d / l (smoothness 2.5)
    periodic   s^2 exp(-2 sin^2(pi d / p) / l^2)

Symbols: l `length_scale`, s `amplitude` (a standard deviation), p `period`, each fixed ([a, a]) or uniform in
[low, high] for each task; noise ~ N(0, noise^2); x ~ U[x_range]. The K + Q points of a task are drawn together and
exactly, as L e with L the Cholesky factor of k(x, x) + noise^2 I in float64 and e ~ N(0, I). Without noise 1e-8 s^2
stands in its place: a matrix of near points has no factor else.

Garnelo et al. 2018 (arXiv 1807.01613) train on rbf with l = 0.4, s = 1, noise 0.02, x ~ U[-2, 2]; Kim et al. 2019
(arXiv 1901.05761) draw l ~ U[0.1, 0.6] and s ~ U[0.1, 1]. `oracle` says what can be reached at best (gp_posterior.py).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from metarun.compute.random import Bits, bits_of_steps, normal, random_bits, uniform
from metarun.data.ahead import Ahead
from metarun.data.gp_posterior import Array, Kernel, figures, predicted
from metarun.errors import require
from metarun.types import Batch, EpisodeSpec, Kind, Split, Task

KERNELS = ("rbf", "matern", "periodic")
SMOOTHNESS = (1.5, 2.5)
OWN_WORDS = 3  # length scale, amplitude, period
POINT_WORDS = 3  # x, and two for a normal number
LEAST_NOISE = 1e-4  # times the amplitude


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
        known = self.smoothness in SMOOTHNESS
        require(known, "smoothness", self.smoothness, "choices: 1.5, 2.5 (of kernel=matern)")
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
        """Any number of points can be drawn."""

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        return self._ahead(split, seed, step, tasks, spec)

    @functools.cached_property
    def _ahead(self) -> Ahead:
        return Ahead(self._draw)

    def _draw(self, split: Split, seed: int, steps: range, tasks: range, spec: EpisodeSpec) -> list[Task]:
        """The tasks of each of the steps."""
        points = spec.shots + spec.queries
        bits = bits_of_steps(split, seed, steps, tasks, OWN_WORDS + POINT_WORDS * points)
        where, first, second = np.split(bits[:, OWN_WORDS:], POINT_WORDS, axis=1)
        x = uniform(where, *self.x_range)
        factor = np.linalg.cholesky(self._kernel(bits).of_targets(x))
        y = (factor @ normal(first, second)[..., None])[..., 0]
        rows, targets = (_column(v).unflatten(0, (len(steps), -1)) for v in (x, y))
        k = spec.shots
        parts = rows[:, :, :k], targets[:, :, :k], rows[:, :, k:], targets[:, :, k:]
        return [Task(Batch(a, b), Batch(c, d)) for a, b, c, d in zip(*(p.unbind() for p in parts), strict=True)]

    def _kernel(self, bits: Bits) -> Kernel:
        """That of each task, from its own words."""
        ranges = (self.length_scale, self.amplitude, self.period)
        length, amplitude, period = (uniform(bits[:, i], *ends) for i, ends in enumerate(ranges))
        noise = np.maximum(self.noise, LEAST_NOISE * amplitude)
        return Kernel(self.kernel, self.smoothness, length, amplitude, period, noise)

    def kernel_of(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Kernel:
        """What the functions of these tasks were drawn with."""
        words = OWN_WORDS + POINT_WORDS * (spec.shots + spec.queries)
        return self._kernel(random_bits(split, seed, step, tasks, words))

    def oracle(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> dict[str, Tensor]:
        """What the exact posterior, which is told the task's kernel, scores on the queries; figures [T]."""
        (support_x, support_y), (query_x, query_y) = self._arrays(split, seed, step, tasks, spec)
        kernel = self.kernel_of(split, seed, step, tasks, spec)
        found = figures(predicted(kernel, support_x, support_y, query_x), query_y)
        return {name: torch.from_numpy(values) for name, values in found.items()}

    def oracle_band(
        self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec, x: Array
    ) -> tuple[Array, Array]:
        """Mean and standard deviation of the exact posterior of y at the places x [G], each [T, G]."""
        (support_x, support_y), _ = self._arrays(split, seed, step, tasks, spec)
        places = np.broadcast_to(x, (len(tasks), len(x)))
        kernel = self.kernel_of(split, seed, step, tasks, spec)
        mean, covariance = predicted(kernel, support_x, support_y, places)
        return mean, np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))

    def _arrays(self, *episode: Any) -> list[list[Array]]:
        return [[v[..., 0].double().numpy() for v in batch] for batch in self.episodes(*episode)]

    def reference_inputs(self, count: int) -> Tensor:
        return _column(np.linspace(*self.x_range, count))

    def facts(self) -> dict[str, Any]:
        ranges = {name: list(getattr(self, name)) for name in ("length_scale", "amplitude", "x_range")}
        told: dict[str, Any] = {"period": list(self.period)} if self.kernel == "periodic" else {}
        told |= {"smoothness": self.smoothness} if self.kernel == "matern" else {}
        return {"split": "sampled", "split_sha256": None, "kernel": self.kernel, **ranges, **told, "noise": self.noise}


def _column(values: Array) -> Tensor:
    """[..., K] float64 -> [..., K, 1] float32."""
    return torch.from_numpy(values.astype(np.float32)).unsqueeze(-1)
