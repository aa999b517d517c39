r"""Sinusoid regression (Finn et al. 2017): y = A sin(x - p) + noise, one (A, p) per task.

A ~ U[amplitude], p ~ U[phase], x ~ U[x_range], noise ~ N(0, noise^2); K support and Q query points are drawn
independently. With the published ranges predicting 0 scores an MSE of 4.25, and the best predictor that does not
adapt, -(2/pi) 2.55 cos x, scores 3.006: less than that before adaptation means a leak.

With `identity` = N tasks are not mutually exclusive and can be memorised (Yin et al. 2020, arXiv 1912.03820): beside x
a network is given a one-hot of N columns. In training it tells the amplitude, which is one of N equally spaced values
from the lowest to the highest. Validation and test draw A from the whole range and, with `identity_at_test=random`, a
one-hot at random: who reads it instead of the support set is led astray. With `own` the one-hot is that of the nearest
of the N values. The paper's are A from 20 values in [0.1, 4], p = 0, x ~ U[-5, 5], noise 0.1 and the random one-hot;
its released code trains on the first 16 values only, which is left out here. Other phases and `own` are ours; with
several phases a task keeps something that only its support set tells.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from metarun.compute.random import Bits, bits_of_steps, normal, uniform
from metarun.data.prefetch import Ahead
from metarun.errors import require
from metarun.types import Batch, EpisodeSpec, Kind, Split, Task

IDENTITIES = ("random", "own")


@dataclass(frozen=True)
class Sinusoid:
    amplitude: tuple[float, float]
    phase: tuple[float, float]
    x_range: tuple[float, float]
    noise: float
    identity: int | None = None
    identity_at_test: str = "random"

    kind: ClassVar[Kind] = "regression"

    def __post_init__(self) -> None:
        for name in ("amplitude", "phase", "x_range"):
            ends = getattr(self, name)
            ordered = len(ends) == 2 and -math.inf < ends[0] <= ends[1] < math.inf
            require(ordered, name, list(ends), "must be [low, high], finite, with low <= high")
        require(0 <= self.noise < math.inf, "noise", self.noise, "must be at least 0 and finite")
        enough = self.identity is None or self.identity >= 2
        require(enough, "identity", self.identity, "must be at least 2 (amplitudes), or null for none in the input")
        choices = "choices: " + ", ".join(IDENTITIES)
        require(self.identity_at_test in IDENTITIES, "identity_at_test", self.identity_at_test, choices)

    def input_shape(self) -> tuple[int, ...]:
        return (1 + (self.identity or 0),)

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
        words = 2 + 3 * (spec.shots + spec.queries)
        bits = bits_of_steps(split, seed, steps, tasks, words + (self.identity is not None))
        amplitude = uniform(bits[:, :1], *self.amplitude)
        shown = None
        if self.identity is not None:
            amplitude, shown = self._identified(split, amplitude, bits[:, -1:], self.identity)
        phase = uniform(bits[:, 1:2], *self.phase)
        x, y = self._points(bits[:, 2:words], amplitude, phase)
        rows, targets = (v.unflatten(0, (len(steps), -1)) for v in (self._inputs(x, shown), _column(y)))
        k = spec.shots
        parts = rows[:, :, :k], targets[:, :, :k], rows[:, :, k:], targets[:, :, k:]
        by_step = zip(*(part.unbind() for part in parts), strict=True)
        return [Task(Batch(a, b), Batch(c, d)) for a, b, c, d in by_step]

    def _identified(self, split: Split, a: np.ndarray, bits: Bits, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Each task's amplitude and the number that its one-hot shows, both [T, 1]."""
        low, high = self.amplitude
        values = np.linspace(low, high, count)
        any_of_them = uniform(bits, 0, count).astype(int)
        if split == "train":
            return values[any_of_them], any_of_them
        nearest = np.abs(a - values).argmin(1, keepdims=True)
        return a, any_of_them if self.identity_at_test == "random" else nearest

    def reference_inputs(self, count: int) -> Tensor:
        x = np.linspace(*self.x_range, count)
        return self._inputs(x, None if self.identity is None else np.arange(count) % self.identity)

    def facts(self) -> dict[str, Any]:
        ranges = {name: list(getattr(self, name)) for name in ("amplitude", "phase", "x_range")}
        told = {"identity": self.identity, "identity_at_test": self.identity_at_test} if self.identity else {}
        return {"split": "sampled", "split_sha256": None, **ranges, "noise": self.noise, **told}

    def _points(self, bits: Bits, amplitude: np.ndarray, phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x and y, each [T, K + Q], from three words a point."""
        where, noise_a, noise_b = np.split(bits, 3, axis=1)
        x = uniform(where, *self.x_range)
        y = amplitude * np.sin(x - phase)
        if self.noise > 0:
            y = y + self.noise * normal(noise_a, noise_b)
        return x, y

    def _inputs(self, x: np.ndarray, shown: np.ndarray | None) -> Tensor:
        """x [..., K] -> rows [..., K, 1], or [..., K, 1 + N] with the one-hots of the numbers [..., 1] or [..., K]."""
        if shown is None:
            return _column(x)
        one_hot = np.broadcast_to(shown[..., None], (*x.shape, 1)) == np.arange(self.identity or 0)
        return torch.from_numpy(np.concatenate([x[..., None], one_hot], -1).astype(np.float32))


def _column(values: np.ndarray) -> Tensor:
    """[..., K] float64 -> [..., K, 1] float32."""
    return torch.from_numpy(values.astype(np.float32)).unsqueeze(-1)
