r"""Networks with noise in their weights or in one block's output, trained by what is theirs in a penalty's name.

    weights       w = m + exp(l) eps      l one for each weight, eps ~ N(0, 1), the same for all tasks of an outer step
    activations   z = mu(x) + sigma(x) eps      eps for each row of each task (bottleneck.py)

Noise is drawn by `noisy`, for the meta-gradient of an outer step alone, as a function of (seed, step). Without it a
network puts out its mean: in validation, test, measures and predictions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.init import xavier_uniform_

from metarun.compute import random
from metarun.models.bottleneck import shift_of, with_noise
from metarun.models.network import Network
from metarun.types import Batch, Model, ModelOptions, Params, Task, optional


@dataclass(frozen=True)
class NoisyWeights:
    model: Model
    names: tuple[str, ...]  # of the noisy tensors
    prefix: str  # of what is added to the parameters
    std: float  # at the start

    @property
    def features(self) -> int:
        return self.model.features

    @property
    def matmul_only(self) -> bool:
        return optional(self.model, ModelOptions, "matmul_only")

    def init(self, seed: int) -> Params:
        weights = self.model.init(seed)
        return weights | {self._log_std(n): torch.full_like(weights[n], self.std).log() for n in self.names}

    def noisy(self, params: Params, tasks: Task, seed: int, step: int, first: int = 0) -> tuple[Params, Task]:
        """With eps beside the weights, under names of its own."""
        sizes = [params[n].numel() for n in self.names]
        drawn = torch.from_numpy(random.noise(seed, step, range(1), sum(sizes))[0])
        parts = zip(self.names, drawn.split(sizes), strict=True)
        return params | {self._noise(n): part.view(params[n].shape).to(params[n]) for n, part in parts}, tasks

    def gaussians(self, params: Params) -> list[tuple[Tensor, Tensor]]:
        """Mean and logarithm of the standard deviation of each noisy tensor."""
        return [(params[n], params[self._log_std(n)]) for n in self.names]

    def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
        return self.model.apply(self._drawn(params), x, stats)

    def activations(self, params: Params, x: Tensor, stats: Any = None) -> dict[str, Tensor]:
        return self.model.activations(self._drawn(params), x, stats)

    def query_stats(self, params: Params, support_x: Tensor) -> Any:
        return self.model.query_stats(self._drawn(params), support_x)

    def calibrate(self, params: Params, x: Tensor) -> NoisyWeights:
        model = self.model.calibrate(params, x)
        return self if model is self.model else replace(self, model=model)

    def _drawn(self, params: Params) -> Params:
        """m + exp(l) eps where there is noise, else m."""
        noisy = [n for n in self.names if self._noise(n) in params]
        return params | {n: params[n] + params[self._log_std(n)].exp() * params[self._noise(n)] for n in noisy}

    def _log_std(self, name: str) -> str:
        return f"{self.prefix}log_std.{name}"

    def _noise(self, name: str) -> str:
        return f"{self.prefix}noise.{name}"


@dataclass(frozen=True)
class NoisyActivations:
    network: Network  # with a bottleneck
    width: int  # D, the numbers of noise that a row takes
    std: float  # at the start, where the map that gives it puts out 0

    @property
    def features(self) -> int:
        return self.network.features

    @property
    def matmul_only(self) -> bool:
        return self.network.matmul_only

    def init(self, seed: int) -> Params:
        """The network's weights; beside them sigma's map, Xavier-uniform from the next seed."""
        bottleneck = self.network.bottleneck
        assert bottleneck
        shape = self.network.shapes[bottleneck.block]
        weight = xavier_uniform_(torch.empty(shape), generator=torch.Generator().manual_seed(seed + 1))
        shift = torch.full(shape[:1], shift_of(self.std))
        return self.network.init(seed) | dict(zip(bottleneck.names, (weight, shift), strict=True))

    def noisy(self, params: Params, tasks: Task, seed: int, step: int, first: int = 0) -> tuple[Params, Task]:
        """With eps behind each row of the inputs; `first` is the number of the first of these tasks."""
        rows = [batch.x.shape[1] for batch in tasks]
        drawn = random.noise(seed, step, range(first, first + len(tasks.support.x)), sum(rows) * self.width)
        parts = np.split(drawn, [rows[0] * self.width], axis=1)
        eps = [torch.from_numpy(p).unflatten(1, (r, self.width)) for p, r in zip(parts, rows, strict=True)]
        return params, Task(*(Batch(with_noise(b.x, e), b.y) for b, e in zip(tasks, eps, strict=True)))

    def gaussian(self, params: Params, x: Tensor, stats: Any = None) -> tuple[Tensor, Tensor]:
        """mu and sigma of rows, [B, D] each."""
        return self.network.gaussian(params, x, stats)

    def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
        return self.network.apply(params, x, stats)

    def activations(self, params: Params, x: Tensor, stats: Any = None) -> dict[str, Tensor]:
        return self.network.activations(params, x, stats)

    def query_stats(self, params: Params, support_x: Tensor) -> Any:
        return self.network.query_stats(params, support_x)

    def calibrate(self, params: Params, x: Tensor) -> NoisyActivations:
        network = self.network.calibrate(params, x)
        return self if network is self.network else replace(self, network=network)
