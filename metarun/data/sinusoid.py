r"""Sinusoid regression (Finn et al. 2017): y = A sin(x - p) + noise, one (A, p) per task.

A ~ U[amplitude], p ~ U[phase], x ~ U[x_range], noise ~ N(0, noise^2); K support and Q query points are drawn
independently. With the published ranges predicting 0 scores an MSE of 4.25, and the best predictor that does not
adapt, -(2/pi) 2.55 cos x, scores 3.006: less than that before adaptation means a leak.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from metarun.data.draws import Bits, normal, random_bits, uniform
from metarun.errors import require
from metarun.types import Batch, EpisodeSpec, Kind, Split, Task


@dataclass(frozen=True)
class Sinusoid:
    amplitude: tuple[float, float]
    phase: tuple[float, float]
    x_range: tuple[float, float]
    noise: float

    kind: ClassVar[Kind] = "regression"

    def __post_init__(self) -> None:
        for name in ("amplitude", "phase", "x_range"):
            ends = getattr(self, name)
            ordered = len(ends) == 2 and -math.inf < ends[0] <= ends[1] < math.inf
            require(ordered, name, list(ends), "must be [low, high], finite, with low <= high")
        require(0 <= self.noise < math.inf, "noise", self.noise, "must be at least 0 and finite")

    def input_shape(self) -> tuple[int, ...]:
        return (1,)

    def outputs(self, ways: int) -> int:
        return 1

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        """Any number of points can be drawn."""

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        bits = random_bits(split, seed, step, tasks, 2 + 3 * (spec.shots + spec.queries))
        amplitude = uniform(bits[:, :1], *self.amplitude)
        phase = uniform(bits[:, 1:2], *self.phase)
        x, y = self._points(bits[:, 2:], amplitude, phase)
        k = spec.shots
        return Task(Batch(_column(x[:, :k]), _column(y[:, :k])), Batch(_column(x[:, k:]), _column(y[:, k:])))

    def reference_inputs(self, count: int) -> Tensor:
        return _column(np.linspace(*self.x_range, count))

    def facts(self) -> dict[str, Any]:
        ranges = {name: list(getattr(self, name)) for name in ("amplitude", "phase", "x_range")}
        return {"split": "sampled", "split_sha256": None, **ranges, "noise": self.noise}

    def _points(self, bits: Bits, amplitude: np.ndarray, phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x and y, each [T, K + Q], from three words a point."""
        where, noise_a, noise_b = np.split(bits, 3, axis=1)
        x = uniform(where, *self.x_range)
        y = amplitude * np.sin(x - phase)
        if self.noise > 0:
            y = y + self.noise * normal(noise_a, noise_b)
        return x, y


def _column(values: np.ndarray) -> Tensor:
    """[..., K] float64 -> [..., K, 1] float32."""
    return torch.from_numpy(values.astype(np.float32)).unsqueeze(-1)
