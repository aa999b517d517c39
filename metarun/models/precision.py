"""Linear maps in another precision than all else: the bfloat16 of `device.precision`.

    y = wide(f(narrow(x), narrow(w)))        f a block's convolution or matrix product, x and w of float32

Both derivatives of f are taken in the narrow precision too, since a cast differentiates to a cast. All else stays in
float32: meta-parameters, fast weights and their updates, normalisation and its statistics, the head, losses, penalties,
dot products of conjugate gradients, optimizer, checkpoints. A bfloat16 has 8 significant bits: an inner step of 0.01
times a gradient would be lost in weights of that type. `torch.autocast` does the same, but fails under `vmap` (batch
normalisation, torch 2.13).

Of an ordinary module, f is each `nn.Linear` and `nn.Conv1d|2d|3d` before the head; a bias is added in float32. Products
that it calls itself, as those of attention, and layers that extend these classes stay as they are.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from metarun.errors import SettingError
from metarun.models.network import Network
from metarun.types import Model

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Narrow:
    """A linear map computed in `dtype`; its result has the type of x."""

    product: Callable[[Tensor, Tensor], Tensor]
    dtype: torch.dtype

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.product(x.to(self.dtype), weight.to(self.dtype)).to(x.dtype)


def cast_model(model: Model, precision: str) -> Model:
    """The network with its linear maps before the head in bfloat16, if that is the precision; else itself."""
    if precision != "bfloat16":
        return model
    from metarun.models.module import ModuleNetwork  # with what reads images

    if isinstance(model, ModuleNetwork):
        template, tape = copy.deepcopy((model.template, model.tape))  # layers share the tape
        for name, layer in template.named_modules():
            if type(layer) in PRODUCTS and name != model.head:
                layer.forward = functools.partial(_narrow_forward, layer)
        return replace(model, template=template, tape=tape)
    if not isinstance(model, Network):
        raise SettingError("device.precision", precision, "needs a network of blocks; choices: float32, float64")
    narrow = functools.partial(Narrow, dtype=torch.bfloat16)
    return replace(model, linear=narrow(model.linear), product=narrow(model.product) if model.product else None)


def _narrow_forward(layer: Any, x: Tensor) -> Tensor:
    product = linear if isinstance(layer, nn.Linear) else functools.partial(layer._conv_forward, bias=None)
    y = product(x.to(torch.bfloat16), layer.weight.to(torch.bfloat16)).to(x.dtype)
    if layer.bias is None:
        return y
    return y + (layer.bias if isinstance(layer, nn.Linear) else layer.bias.view(-1, *[1] * (x.ndim - 2)))
