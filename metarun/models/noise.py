r"""Networks with noise in their weights or in one block's output. The scale of the noise is trained.

    weights       w = m + exp(l) eps      l one for each weight, eps ~ N(0, 1), the same for all tasks of an outer step
    activations   z = mu(x) + sigma(x) eps      sigma = softplus(s) + 1e-6,  eps for each row of each task

In the second form mu is the block's own output, s a second linear map of the block's input, eps of D numbers a row. A
row of the input carries its noise behind its own numbers; a row of the network's input shape has no noise, z = mu. So
the noise is independent for each row of support, query and tasks, and the network stays a pure function.

`add_noise` draws the noise for the meta-gradient of an outer step, as a function of (seed, step). Everywhere else, in
validation, test, measures and predictions, a network uses its mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.nn.init import xavier_uniform_

from metarun.compute import random
from metarun.types import Batch, Model, ModelOptions, Params, Task, optional

LEAST = 1e-6
"""The smallest sigma, so that log sigma stays finite."""


@dataclass(frozen=True)
class Bottleneck:
    block: int
    input_shape: tuple[int, ...]
    prefix: str  # of the parameter names of sigma's map

    @property
    def names(self) -> tuple[str, str]:
        """The names of the weight and the shift of sigma's map."""
        return f"{self.prefix}std.weight", f"{self.prefix}std.shift"

    def split(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows [B, ...] -> themselves; rows with noise [B, n + D] -> inputs [B, ...] and noise [B, D]."""
        if tuple(x.shape[1:]) == self.input_shape:
            return x, None
        size = math.prod(self.input_shape)
        return x[:, :size].reshape(-1, *self.input_shape), x[:, size:]


def sigma(s: Tensor) -> Tensor:
    return softplus(s) + LEAST


@dataclass(frozen=True)
class WeightNoise:
    names: tuple[str, ...]  # of the noisy tensors
    prefix: str  # of the names of the added parameters
    std: float  # the initial standard deviation

    def init(self, weights: Params, seed: int) -> Params:
        """l = ln std for each noisy weight."""
        return {self._log_std(n): torch.full_like(weights[n], self.std).log() for n in self.names}

    def add(self, params: Params, tasks: Task, seed: int, step: int, first: int = 0) -> tuple[Params, Task]:
        """The parameters with eps beside the weights, and the tasks unchanged."""
        sizes = [params[n].numel() for n in self.names]
        drawn = torch.from_numpy(random.noise(seed, step, range(1), sum(sizes))[0])
        parts = zip(self.names, drawn.split(sizes), strict=True)
        return params | {self._noise(n): part.view(params[n].shape).to(params[n]) for n, part in parts}, tasks

    def weights(self, params: Params) -> Params:
        """m + exp(l) eps where there is noise, else m."""
        noisy = [n for n in self.names if self._noise(n) in params]
        return params | {n: params[n] + params[self._log_std(n)].exp() * params[self._noise(n)] for n in noisy}

    def gaussians(self, params: Params) -> list[tuple[Tensor, Tensor]]:
        """Mean and logarithm of the standard deviation of each noisy tensor."""
        return [(params[n], params[self._log_std(n)]) for n in self.names]

    def _log_std(self, name: str) -> str:
        return f"{self.prefix}log_std.{name}"

    def _noise(self, name: str) -> str:
        return f"{self.prefix}noise.{name}"


@dataclass(frozen=True)
class ActivationNoise:
    bottleneck: Bottleneck  # that of the network
    width: int  # D, the numbers of noise for one row
    std: float  # the initial standard deviation

    def init(self, weights: Params, seed: int) -> Params:
        """sigma's map: Xavier-uniform from the next seed, shifted to sigma = std."""
        shape = weights[f"block{self.bottleneck.block}.weight"].shape
        weight = xavier_uniform_(torch.empty(shape), generator=torch.Generator().manual_seed(seed + 1))
        shift = torch.full(shape[:1], math.log(math.expm1(self.std - LEAST)))  # the s with sigma = std
        return dict(zip(self.bottleneck.names, (weight, shift), strict=True))

    def add(self, params: Params, tasks: Task, seed: int, step: int, first: int = 0) -> tuple[Params, Task]:
        """The tasks with eps behind each row of the inputs; `first` is the number of the first of these tasks."""
        rows = [batch.x.shape[1] for batch in tasks]
        drawn = random.noise(seed, step, range(first, first + len(tasks.support.x)), sum(rows) * self.width)
        parts = np.split(drawn, [rows[0] * self.width], axis=1)
        eps = [torch.from_numpy(p).unflatten(1, (r, self.width)) for p, r in zip(parts, rows, strict=True)]
        inputs = [torch.cat([b.x.flatten(2), e.to(b.x)], 2) for b, e in zip(tasks, eps, strict=True)]
        return params, Task(*(Batch(x, b.y) for x, b in zip(inputs, tasks, strict=True)))

    def weights(self, params: Params) -> Params:
        """The parameters themselves: the noise is in the rows."""
        return params


@dataclass(frozen=True)
class NoisyNetwork:
    """A network, and the noise in its weights or in the output of its bottleneck."""

    model: Model
    noise: WeightNoise | ActivationNoise

    @property
    def features(self) -> int:
        return self.model.features

    @property
    def matmul_only(self) -> bool:
        return optional(self.model, ModelOptions, "matmul_only")

    def init(self, seed: int) -> Params:
        """The network's weights and the parameters of the noise."""
        weights = self.model.init(seed)
        return weights | self.noise.init(weights, seed)

    def add_noise(self, params: Params, tasks: Task, seed: int, step: int, first: int = 0) -> tuple[Params, Task]:
        """Parameters and tasks with the noise of an outer step; `first` is the number of the first of these tasks."""
        return self.noise.add(params, tasks, seed, step, first)

    def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
        return self.model.apply(self.noise.weights(params), x, stats)

    def activations(self, params: Params, x: Tensor, stats: Any = None) -> dict[str, Tensor]:
        return self.model.activations(self.noise.weights(params), x, stats)

    def query_stats(self, params: Params, support_x: Tensor) -> Any:
        return self.model.query_stats(self.noise.weights(params), support_x)

    def calibrate(self, params: Params, x: Tensor) -> NoisyNetwork:
        model = self.model.calibrate(params, x)
        return self if model is self.model else replace(self, model=model)
