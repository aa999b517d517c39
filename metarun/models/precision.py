"""Linear maps in another precision than all else: the bfloat16 of `device.precision`.

    y = wide(f(narrow(x), narrow(w)))        f a block's convolution or matrix product, x and w of float32

Both derivatives of f are taken in the narrow precision too, since a cast differentiates to a cast. All else stays in
float32: meta-parameters, fast weights and their updates, normalisation and its statistics, the head, losses, penalties,
dot products of conjugate gradients, optimizer, checkpoints. A bfloat16 has 8 significant bits: an inner step of 0.01
times a gradient would be lost in weights of that type. `torch.autocast` does the same, but fails under `vmap` (batch
normalisation, torch 2.13).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metarun.errors import SettingError
from metarun.models.network import Network
from metarun.types import Model


@dataclass(frozen=True)
class Narrow:
    """A linear map computed in `dtype`; its result has the type of x."""

    product: Callable[[Tensor, Tensor], Tensor]
    dtype: torch.dtype

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.product(x.to(self.dtype), weight.to(self.dtype)).to(x.dtype)


def cast_model(model: Model, precision: str) -> Model:
    """The network with its blocks' linear maps in bfloat16, if that is the precision; else the network itself."""
    if precision != "bfloat16":
        return model
    if not isinstance(model, Network):
        raise SettingError("device.precision", precision, "needs a network of blocks; choices: float32, float64")
    narrow = functools.partial(Narrow, dtype=torch.bfloat16)
    return replace(model, linear=narrow(model.linear), product=narrow(model.product) if model.product else None)
