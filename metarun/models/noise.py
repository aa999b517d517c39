r"""Networks with noise in their weights or in one block's output. The scale of the noise is trained.

    weights       w = m + exp(l) eps      l one for each weight, eps ~ N(0, 1), the same for all tasks of an outer step
    activations   z = mu(x) + sigma(x) eps      eps for each row of each task (bottleneck.py)

`add_noise` draws the noise for the meta-gradient of an outer step, as a function of (seed, step). Everywhere else, in
validation, test, measures and predictions, a network uses its mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.init import xavier_uniform_

from metarun.compute import random
from metarun.models.bottleneck import append_noise, inverse_sigma
from metarun.models.network import Network
from metarun.types import Batch, ModelOptions, Params, Task, optional


@dataclass(frozen=True)
class _Noisy:
    """Calls the network with the weights that `_weights` makes of the parameters."""

    model: Any

    @property
    def features(self) -> int:
        return self.model.features

    @property
    def matmul_only(self) -> bool:
        return optional(self.model, ModelOptions, "matmul_only")

    def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
        return self.model.apply(self._weights(params), x, stats)

    def activations(self, params: Params, x: Tensor, stats: Any = None) -> dict[str, Tensor]:
        return self.model.activations(self._weights(params), x, stats)

    def query_stats(self, params: Params, support_x: Tensor) -> Any:
        return self.model.query_stats(self._weights(params), support_x)

    def calibrate(self, params: Params, x: Tensor) -> Self:
        model = self.model.calibrate(params, x)
        return self if model is self.model else replace(self, model=model)

    def _weights(self, params: Params) -> Params:
        return params


@dataclass(frozen=True)
class NoisyWeights(_Noisy):
    names: tuple[str, ...]  # of the noisy tensors
    prefix: str  # of the names of the added parameters
    std: float  # the initial standard deviation

    def init(self, seed: int) -> Params:
        """The network's weights, and l = ln std for each noisy one."""
        weights = self.model.init(seed)
        return weights | {self._log_std(n): torch.full_like(weights[n], self.std).log() for n in self.names}

    def add_noise(self, params: Params, tasks: Task, seed: int, step: int, first: int = 0) -> tuple[Params, Task]:
        """The parameters with eps beside the weights, and the tasks unchanged."""
        sizes = [params[n].numel() for n in self.names]
        drawn = torch.from_numpy(random.noise(seed, step, range(1), sum(sizes))[0])
        parts = zip(self.names, drawn.split(sizes), strict=True)
        return params | {self._noise(n): part.view(params[n].shape).to(params[n]) for n, part in parts}, tasks

    def gaussians(self, params: Params) -> list[tuple[Tensor, Tensor]]:
        """Mean and logarithm of the standard deviation of each noisy tensor."""
        return [(params[n], params[self._log_std(n)]) for n in self.names]

    def _weights(self, params: Params) -> Params:
        """m + exp(l) eps where there is noise, else m."""
        noisy = [n for n in self.names if self._noise(n) in params]
        return params | {n: params[n] + params[self._log_std(n)].exp() * params[self._noise(n)] for n in noisy}

    def _log_std(self, name: str) -> str:
        return f"{self.prefix}log_std.{name}"

    def _noise(self, name: str) -> str:
        return f"{self.prefix}noise.{name}"


@dataclass(frozen=True)
class NoisyActivations(_Noisy):
    model: Network  # with a bottleneck
    width: int  # D, the numbers of noise for one row
    std: float  # the initial standard deviation

    def init(self, seed: int) -> Params:
        """The network's weights, and sigma's map: Xavier-uniform from the next seed, shifted to sigma = std."""
        bottleneck = self.model.bottleneck
        assert bottleneck
        shape = self.model.shapes[bottleneck.block]
        weight = xavier_uniform_(torch.empty(shape), generator=torch.Generator().manual_seed(seed + 1))
        shift = torch.full(shape[:1], inverse_sigma(self.std))
        return self.model.init(seed) | dict(zip(bottleneck.names, (weight, shift), strict=True))

    def add_noise(self, params: Params, tasks: Task, seed: int, step: int, first: int = 0) -> tuple[Params, Task]:
        """The tasks with eps behind each row of the inputs; `first` is the number of the first of these tasks."""
        rows = [batch.x.shape[1] for batch in tasks]
        drawn = random.noise(seed, step, range(first, first + len(tasks.support.x)), sum(rows) * self.width)
        parts = np.split(drawn, [rows[0] * self.width], axis=1)
        eps = [torch.from_numpy(p).unflatten(1, (r, self.width)) for p, r in zip(parts, rows, strict=True)]
        return params, Task(*(Batch(append_noise(b.x, e), b.y) for b, e in zip(tasks, eps, strict=True)))

    def gaussian(self, params: Params, x: Tensor, stats: Any = None) -> tuple[Tensor, Tensor]:
        """mu and sigma of rows, [B, D] each."""
        return self.model.gaussian(params, x, stats)
