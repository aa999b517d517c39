r"""The noise of one block of a network: z = mu + sigma eps, sigma = softplus(s) + 1e-6.

mu is the block's own output, s a second linear map of the block's input, eps ~ N(0, 1) of D numbers a row. The noise
comes with the rows of the input, behind their own numbers: rows of the network's input shape are rows without noise,
z = mu. So noise is as independent as rows are, across support, query and tasks alike, and the network stays a function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

LEAST = 1e-6
"""Of sigma: log sigma stays finite."""


@dataclass(frozen=True)
class Bottleneck:
    block: int
    input_shape: tuple[int, ...]
    prefix: str  # of the names of sigma's map among the parameters

    @property
    def names(self) -> tuple[str, str]:
        """Of the weight and the shift of sigma's map."""
        return f"{self.prefix}std.weight", f"{self.prefix}std.shift"

    def split(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows [B, ...] -> themselves; rows with noise [B, n + D] -> inputs [B, ...] and noise [B, D]."""
        if tuple(x.shape[1:]) == self.input_shape:
            return x, None
        size = math.prod(self.input_shape)
        return x[:, :size].reshape(-1, *self.input_shape), x[:, size:]

    def positive(self, s: Tensor) -> Tensor:
        return softplus(s) + LEAST


def shift_of(std: float) -> float:
    """The s whose sigma is std."""
    return math.log(math.expm1(std - LEAST))


def with_noise(x: Tensor, eps: Tensor) -> Tensor:
    """Rows [T, S, ...] and noise [T, S, D] -> [T, S, n + D]."""
    return torch.cat([x.flatten(2), eps.to(x)], dim=2)
