"""One linear layer, of inputs as they are: f(x) = W x + b. W and b are its head."""

from __future__ import annotations

import math

from torch import nn

from metarun.errors import UserError
from metarun.models.layers import MODULE_NORMS
from metarun.models.module import ModuleNetwork, make_network


def linear(input_shape: tuple[int, ...], outputs: int | None, norm: str) -> ModuleNetwork:
    """W [outputs, D], b [outputs] for inputs [B, ...] of D numbers; it has no normalisation, whatever `norm` is.

    Raises `UserError` without outputs.
    """
    if outputs is None:
        raise UserError("model=linear: has nothing but a head; this learner needs a network before it, as model=mlp")

    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), outputs))

    return make_network(make, "linear", input_shape, outputs, None, norm if norm in MODULE_NORMS else "batch")
