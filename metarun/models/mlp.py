"""A multi-layer perceptron: linear, normalisation and activation per hidden layer, then a linear head.

The layers named in `linear_blocks`, counted from 0, have no activation, as the bottleneck of an encoder has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import elu, gelu, linear, relu, silu, softplus

from metarun.errors import require
from metarun.models.network import Network, flatten, identity

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": relu, "tanh": torch.tanh, "gelu": gelu, "silu": silu, "softplus": softplus, "elu": elu,
}  # fmt: skip


def mlp(
    input_shape: tuple[int, ...],
    outputs: int | None,
    hidden: tuple[int, ...],
    norm: str,
    linear_blocks: tuple[int, ...] = (),
    init_std: float | None = None,
    activation: str = "relu",
) -> Network:
    """A network for inputs [B, ...], flattened; `init_std` is that of its first weights, None: Xavier-uniform."""
    widths_hold = bool(hidden) and all(h >= 1 for h in hidden)
    require(widths_hold, "hidden", list(hidden), "must be a list of widths of at least 1, as [40,40]")
    inside = all(0 <= i < len(hidden) for i in linear_blocks)
    require(inside, "linear_blocks", list(linear_blocks), f"must be numbers from 0 to {len(hidden) - 1}")
    sound = init_std is None or (init_std > 0 and math.isfinite(init_std))
    require(sound, "init_std", init_std, "must be above 0 and finite, or null")
    require(activation in ACTIVATIONS, "activation", activation, "choices: " + ", ".join(ACTIVATIONS))
    widths = [math.prod(input_shape), *hidden]
    return Network(
        shapes=tuple((widths[i + 1], widths[i]) for i in range(len(hidden))),
        linear=linear,
        prepare=flatten,
        after=identity,
        readout=identity,
        features=widths[-1],
        outputs=outputs,
        norm=norm,
        activation=ACTIVATIONS[activation],
        linear_blocks=linear_blocks,
        init_std=init_std,
    )
