"""Conv4: four blocks of 3x3 convolution, normalisation and ReLU, the network of most few-shot papers.

`pool=stride` halves the image by stride 2 (MAML, Reptile, iMAML on Omniglot), `pool=max` by a 2x2 max-pool (ProtoNet,
MatchingNet, miniImageNet). `readout` is the spatial mean or all activations flattened.
"""

from __future__ import annotations

import functools
import math

from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

from metarun.errors import require
from metarun.models.network import Network

DEPTH = 4


def conv4(
    input_shape: tuple[int, ...], outputs: int | None, filters: int, norm: str, pool: str, readout: str
) -> Network:
    """A network for images [B, C, H, W], given `input_shape` = (C, H, W)."""
    require(filters >= 1, "filters", filters, "must be at least 1")
    require(pool in ("stride", "max"), "pool", pool, "choices: stride, max")
    require(readout in ("mean", "flatten"), "readout", readout, "choices: mean, flatten")
    got = f"needs images, and the data set has inputs of shape {list(input_shape)}; try model=mlp"
    require(len(input_shape) == 3, "_target_", "conv4", got)
    area = math.prod(_side(s, pool) for s in input_shape[1:])
    require(area > 0, "pool", pool, f"leaves nothing of {input_shape[1]}x{input_shape[2]} images after four blocks")
    channels = [input_shape[0], *[filters] * DEPTH]
    return Network(
        shapes=tuple((channels[i + 1], channels[i], 3, 3) for i in range(DEPTH)),
        linear=functools.partial(conv2d, padding=1, stride=2 if pool == "stride" else 1),
        prepare=_identity,
        after=functools.partial(max_pool2d, kernel_size=2) if pool == "max" else _identity,
        readout=_spatial_mean if readout == "mean" else _flatten,
        features=filters * (area if readout == "flatten" else 1),
        outputs=outputs,
        norm=norm,
    )


def _side(side: int, pool: str) -> int:
    """The side of the last feature map: stride 2 rounds up, max-pool down."""
    for _ in range(DEPTH):
        side = (side + 1) // 2 if pool == "stride" else side // 2
    return side


def _identity(x: Tensor) -> Tensor:
    return x


def _spatial_mean(h: Tensor) -> Tensor:
    return h.mean((2, 3))


def _flatten(h: Tensor) -> Tensor:
    return h.flatten(1)
