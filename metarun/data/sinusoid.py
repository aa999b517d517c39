r"""Sinusoid regression (Finn et al. 2017): y = A sin(x - p) + noise, one (A, p) per task.

A ~ U[amplitude], p ~ U[phase], x ~ U[x_range], noise ~ N(0, noise^2); K support and Q query points are drawn
independently. With the published ranges predicting 0 scores an MSE of 4.25, and the best predictor that does not
adapt, -(2/pi) 2.55 cos x, scores 3.006: less than that before adaptation means a leak.

With `identity` = N tasks are not mutually exclusive and can be memorised (Yin et al. 2020, arXiv 1912.03820): beside x
a network is given a one-hot of N columns. In training it encodes the amplitude, which is one of N equally spaced values
from the lowest to the highest. Validation and test draw A from the whole range and, with `identity_at_test=random`, a
one-hot at random, which misleads a learner that reads it instead of the support set. With `own` the one-hot is that of
the nearest of the N values. The paper has A from 20 values in [0.1, 4], p = 0, x ~ U[-5, 5], noise 0.1 and the random
one-hot; its released code trains on the first 16 values only, which is left out here. Other phases and `own` are ours;
with several phases only the support set tells the phase.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from metarun.compute.random import bits_of_steps, normal, uniform
from metarun.data.prefetch import EpisodePrefetcher, as_column, split_points
from metarun.errors import require
from metarun.types import EpisodeSpec, Kind, Split, Task

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
        """Accept every size: any number of points can be drawn."""

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        return self._prefetcher(split, seed, step, tasks, spec)

    @functools.cached_property
    def _prefetcher(self) -> EpisodePrefetcher:
        return EpisodePrefetcher(self._draw)

    def _draw(self, split: Split, seed: int, steps: range, tasks: range, spec: EpisodeSpec) -> list[Task]:
        words = 2 + 3 * (spec.shots + spec.queries)
        bits = bits_of_steps(split, seed, steps, tasks, words + (self.identity is not None))
        amplitude = uniform(bits[:, :1], *self.amplitude)
        identity = None
        if self.identity is not None:
            values = np.linspace(*self.amplitude, self.identity)
            identity = uniform(bits[:, -1:], 0, self.identity).astype(int)
            if split == "train":
                amplitude = values[identity]
            elif self.identity_at_test == "own":
                identity = np.abs(amplitude - values).argmin(1, keepdims=True)  # the nearest
        phase = uniform(bits[:, 1:2], *self.phase)
        where, noise_a, noise_b = np.split(bits[:, 2:words], 3, axis=1)
        x = uniform(where, *self.x_range)
        y = amplitude * np.sin(x - phase)
        if self.noise > 0:
            y = y + self.noise * normal(noise_a, noise_b)
        return split_points(self._inputs(x, identity), as_column(y), len(steps), spec.shots)

    def reference_inputs(self, count: int) -> Tensor:
        x = np.linspace(*self.x_range, count)
        return self._inputs(x, None if self.identity is None else np.arange(count) % self.identity)

    def facts(self) -> dict[str, Any]:
        ranges = {name: list(getattr(self, name)) for name in ("amplitude", "phase", "x_range")}
        identity = {"identity": self.identity, "identity_at_test": self.identity_at_test} if self.identity else {}
        return {"split": "sampled", "split_sha256": None, **ranges, "noise": self.noise, **identity}

    def _inputs(self, x: np.ndarray, identity: np.ndarray | None) -> Tensor:
        """x [..., P] -> rows [..., P, 1], or [..., P, 1 + N] with the one-hots of indices [..., 1] or [..., P]."""
        if identity is None:
            return as_column(x)
        one_hot = np.broadcast_to(identity[..., None], (*x.shape, 1)) == np.arange(self.identity or 0)
        return torch.from_numpy(np.concatenate([x[..., None], one_hot], -1).astype(np.float32))
