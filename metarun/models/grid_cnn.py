"""Convolutions along a regular grid, which keep its length: [C_in, G] -> [C, G].

    h_0 = h;   h_{l+1} = relu(W_l * h_l + b_l)   in L layers, without relu in the last one

Symbols: C `width`, L `layers`; W_l has `kernel` taps, an odd number, and zeros stand beyond the ends of the grid.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv1d, relu
from torch.nn.init import xavier_uniform_

from metarun.errors import require
from metarun.types import Params


@dataclass(frozen=True)
class GridCNN:
    channels: int  # C_in
    width: int
    kernel: int
    layers: int

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, "must be at least 1")
        require(self.kernel >= 1 and self.kernel % 2 == 1, "kernel", self.kernel, "must be an odd number of at least 1")
        require(self.layers >= 1, "layers", self.layers, "must be at least 1")

    def init(self, seed: int) -> Params:
        """Xavier-uniform maps, shifts uniform in +- 1 / sqrt(inputs of a unit): with shifts of 0 every unit would begin
        at the kink of its relu where the grid is empty."""
        generator, params = torch.Generator().manual_seed(seed), {}
        for i, (before, width) in enumerate(itertools.pairwise([self.channels, *[self.width] * self.layers])):
            params[f"layer{i}.weight"] = xavier_uniform_(torch.empty(width, before, self.kernel), generator=generator)
            bound = (before * self.kernel) ** -0.5
            params[f"layer{i}.shift"] = bound * (2 * torch.rand(width, generator=generator) - 1)
        return params

    def apply(self, params: Params, h: Tensor) -> Tensor:
        for i in range(self.layers):
            h = relu(h) if i else h
            h = conv1d(h[None], params[f"layer{i}.weight"], params[f"layer{i}.shift"], padding="same")[0]
        return h
