r"""The noise of one block of a network: z = mu + sigma eps, sigma = softplus(s) + 1e-6.

mu is the block's own output, s a second linear map of the block's input, eps ~ N(0, 1) of D numbers a row. A row of the
input carries its noise behind its own numbers; a row of the network's input shape has no noise, z = mu. So the noise is
independent for each row of support, query and tasks, and the network stays a pure function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

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


def inverse_sigma(std: float) -> float:
    """The s with sigma = std."""
    return math.log(math.expm1(std - LEAST))


def append_noise(x: Tensor, eps: Tensor) -> Tensor:
    """Rows [T, S, ...] and noise [T, S, D] -> [T, S, n + D]."""
    return torch.cat([x.flatten(2), eps.to(x)], dim=2)
