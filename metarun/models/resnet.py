"""Residual networks of few-shot papers, on images [C, H, W], as ordinary modules.

    block, ResNet-10, 12, 18 (He et al. 2016, arXiv 1512.03385):   y = drop(pool(a(F(x) + s(x))))
    F   convolutions of 3x3, each normalised, with the activation a between
    s   the identity, or a normalised 1x1 convolution where the size or the width changes

    block, wide networks (Zagoruyko, Komodakis 2016, arXiv 1605.07146):   y = F(u) + s(x),   u = a(norm(x))
    F   conv(drop(a(norm(conv(u)))))
    s   the identity, or a 1x1 convolution of u where the size or the width changes

The convolutions have no bias. Their weights are normal with variance 2 / (9 width) (fan out; He et al. 2015, arXiv
1502.01852), gains 1 and shifts 0, as in the released code of Chen et al. 2019 (arXiv 1904.04232) and Lee et al. 2019
(arXiv 1904.03758).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from metarun.errors import require
from metarun.models.layers import DropBlock
from metarun.models.module import NO_HEAD, Make, ModuleNetwork, make_network
from metarun.models.network import require_inputs

BLOCK_SIZE, BLOCKS_DROPPED = 5, 2
"""Lee et al. 2019: squares of 5x5 pixels, in the last two blocks."""

LARGE = 128
"""Pixels of a side from which on `stem=auto` is the large one."""


def resnet12(
    input_shape: tuple[int, ...],
    outputs: int | None,
    widths: tuple[int, ...],
    drop_block: float,
    readout: str,
    norm: str,
) -> ModuleNetwork:
    """Four blocks of three convolutions, leaky ReLU of slope 0.1, 2x2 max-pool (Lee et al. 2019)."""
    require_inputs("resnet12", input_shape, "images")
    _require_widths("widths", widths, 4)
    require(0 <= drop_block < 1, "drop_block", drop_block, "must be at least 0 and below 1")
    sides = [side // 2 ** len(widths) for side in input_shape[1:]]
    small = f"needs images of 16x16 pixels or more, and the data set has {input_shape[1]}x{input_shape[2]}"
    require(min(sides) >= 1, "_target_", "resnet12", small)

    def make() -> nn.Module:
        blocks = []
        for i, (before, width) in enumerate(itertools.pairwise([input_shape[0], *widths])):
            drops = drop_block if i >= len(widths) - BLOCKS_DROPPED else 0.0
            blocks.append(Block(before, width, 2, convolutions=3, slope=0.1, pool=True, drop_block=drops))
        return ResNet(blocks, widths[-1], sides, outputs, readout)

    return _network(make, "resnet12", input_shape, outputs, readout, norm)


def resnet(
    input_shape: tuple[int, ...],
    outputs: int | None,
    depths: tuple[int, ...],
    width: int,
    stem: str,
    readout: str,
    norm: str,
) -> ModuleNetwork:
    """Groups of blocks of two convolutions, each group half as large as the one before it and twice as wide."""
    require_inputs("resnet", input_shape, "images")
    _require_widths("depths", depths, None)
    require(width >= 1, "width", width, "must be at least 1")
    require(stem in ("auto", "large", "small"), "stem", stem, "choices: auto, large, small")
    large = stem == "large" or (stem == "auto" and min(input_shape[1:]) >= LARGE)
    widths = [width * 2**i for i in range(len(depths))]
    sides = [math.ceil(side / (2 ** (len(depths) - 1) * (4 if large else 1))) for side in input_shape[1:]]

    def make() -> nn.Module:
        first = _convolution(input_shape[0], width, 7, 2) if large else _convolution(input_shape[0], width, 3)
        enter = nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU())
        if large:
            enter.append(nn.MaxPool2d(3, 2, 1))
        parts: list[nn.Module]
        parts, before = [enter], width
        for group, (depth, after) in enumerate(zip(depths, widths, strict=True)):
            for i in range(depth):
                parts.append(Block(before, after, 2 if group and i == 0 else 1))
                before = after
        return ResNet(parts, before, sides, outputs, readout)

    return _network(make, "resnet", input_shape, outputs, readout, norm)


def wide_resnet(
    input_shape: tuple[int, ...],
    outputs: int | None,
    depth: int,
    widen: int,
    strides: tuple[int, ...],
    dropout: float,
    readout: str,
    norm: str,
) -> ModuleNetwork:
    """Three groups of `(depth - 4) / 6` blocks, 16, 32 and 64 times `widen` wide."""
    require_inputs("wide_resnet", input_shape, "images")
    require(depth >= 10 and depth % 6 == 4, "depth", depth, "must be 10, 16, 22, 28, ...: 4 more than a multiple of 6")
    require(widen >= 1, "widen", widen, "must be at least 1")
    _require_widths("strides", strides, 3)
    require(0 <= dropout < 1, "dropout", dropout, "must be at least 0 and below 1")
    sides = list(input_shape[1:])
    for stride in strides:
        sides = [math.ceil(side / stride) for side in sides]

    def make() -> nn.Module:
        parts: list[nn.Module]
        parts, before = [_convolution(input_shape[0], 16, 3)], 16
        for after, stride in zip((16 * widen, 32 * widen, 64 * widen), strides, strict=True):
            for i in range((depth - 4) // 6):
                parts.append(WideBlock(before, after, stride if i == 0 else 1, dropout))
                before = after
        parts.append(nn.Sequential(nn.BatchNorm2d(before), nn.ReLU()))
        return ResNet(parts, before, sides, outputs, readout)

    return _network(make, "wide_resnet", input_shape, outputs, readout, norm)


class Block(nn.Module):
    """[B, before, H, W] -> [B, width, H', W'], smaller by the stride of its first convolution or by a max-pool."""

    def __init__(
        self,
        before: int,
        width: int,
        stride: int,
        convolutions: int = 2,
        slope: float = 0.0,
        pool: bool = False,
        drop_block: float = 0.0,
    ) -> None:
        super().__init__()
        first = 1 if pool else stride
        self.activation = nn.LeakyReLU(slope) if slope else nn.ReLU()
        body: list[nn.Module] = [_convolution(before, width, 3, first), nn.BatchNorm2d(width)]
        for _ in range(convolutions - 1):
            body += [self.activation, _convolution(width, width, 3), nn.BatchNorm2d(width)]
        self.body = nn.Sequential(*body)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(_convolution(before, width, 1, first), nn.BatchNorm2d(width))
        self.pool = nn.MaxPool2d(stride) if pool else nn.Identity()
        self.drop = DropBlock(drop_block, BLOCK_SIZE) if drop_block else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.pool(self.activation(self.body(x) + self.shortcut(x))))


class WideBlock(nn.Module):
    """[B, before, H, W] -> [B, width, H / stride, W / stride], normalised and activated before its convolutions."""

    def __init__(self, before: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.body = nn.Sequential(
            _convolution(before, width, 3, stride),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(dropout),
            _convolution(width, width, 3),
        )
        changes = stride != 1 or before != width
        self.shortcut = _convolution(before, width, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        u = self.enter(x)
        return self.body(u) + (x if self.shortcut is None else self.shortcut(u))


class ResNet(nn.Module):
    """Parts one after another, then the spatial mean of the last feature map, or all of it, and a linear head."""

    def __init__(
        self, parts: Sequence[nn.Module], width: int, sides: Sequence[int], outputs: int | None, readout: str
    ) -> None:
        super().__init__()
        self.parts, self.readout = nn.ModuleList(parts), readout
        features = width * (math.prod(sides) if readout == "flatten" else 1)
        self.head = nn.Linear(features, outputs) if outputs is not None else None
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        z = x.mean((2, 3)) if self.readout == "mean" else x.flatten(1)
        return z if self.head is None else self.head(z)


def _network(
    make: Make, name: str, input_shape: tuple[int, ...], outputs: int | None, readout: str, norm: str
) -> ModuleNetwork:
    require(readout in ("mean", "flatten"), "readout", readout, "choices: mean, flatten")
    return make_network(make, name, input_shape, outputs, "head" if outputs is not None else NO_HEAD, norm)


def _convolution(before: int, width: int, side: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, width, side, stride, padding=side // 2, bias=False)


def _require_widths(key: str, values: Sequence[int], count: int | None) -> None:
    fits = bool(values) and all(v >= 1 for v in values) and count in (None, len(values))
    require(fits, key, list(values), f"must be {count or 'some'} whole numbers of at least 1")
