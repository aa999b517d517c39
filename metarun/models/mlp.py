"""A multi-layer perceptron: linear, normalisation and ReLU per hidden layer, then a linear head."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import linear

from metarun.errors import require
from metarun.models.network import Network


def mlp(input_shape: tuple[int, ...], outputs: int | None, hidden: tuple[int, ...], norm: str) -> Network:
    """A network for inputs [B, ...], flattened."""
    widths_hold = bool(hidden) and all(h >= 1 for h in hidden)
    require(widths_hold, "hidden", list(hidden), "must be a list of widths of at least 1, as [40,40]")
    widths = [math.prod(input_shape), *hidden]
    return Network(
        shapes=tuple((widths[i + 1], widths[i]) for i in range(len(hidden))),
        linear=linear,
        prepare=_flatten,
        after=_identity,
        readout=_identity,
        features=widths[-1],
        outputs=outputs,
        norm=norm,
    )


def _flatten(x: Tensor) -> Tensor:
    return x.flatten(1)


def _identity(h: Tensor) -> Tensor:
    return h
