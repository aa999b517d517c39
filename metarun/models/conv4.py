"""Conv4: four blocks of 3x3 convolution, normalisation and ReLU, the network of most few-shot papers. Conv6 has two
more, which keep the size (Chen et al. 2019, arXiv 1904.04232).

`pool=stride` halves the image by stride 2 (MAML, Reptile, iMAML on Omniglot), `pool=max` by a 2x2 max-pool (ProtoNet,
MatchingNet, miniImageNet). `readout` is the spatial mean or all activations flattened.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.functional import conv2d, linear, max_pool2d, pad

from metarun.errors import require
from metarun.models.network import Network, flatten, identity, pointwise, require_inputs

HALVED = 4
"""The first blocks, which halve the image; further ones keep its size."""


def conv4(
    input_shape: tuple[int, ...],
    outputs: int | None,
    filters: int,
    norm: str,
    pool: str,
    readout: str,
    depth: int = HALVED,
) -> Network:
    """A network for images [B, C, H, W], given `input_shape` = (C, H, W)."""
    require(filters >= 1, "filters", filters, "must be at least 1")
    require(pool in ("stride", "max"), "pool", pool, "choices: stride, max")
    require(depth >= 1, "depth", depth, "must be at least 1")
    deep = f"halves the image in every block, {HALVED} at most; model.pool=max for depth={depth}"
    require(pool == "max" or depth <= HALVED, "pool", pool, deep)
    require(readout in ("mean", "flatten"), "readout", readout, "choices: mean, flatten")
    require_inputs("conv4", input_shape, "images")
    area = math.prod(_side(s, pool, depth) for s in input_shape[1:])
    left = f"leaves nothing of {input_shape[1]}x{input_shape[2]} images after {min(depth, HALVED)} blocks"
    require(area > 0, "pool", pool, left)
    channels = [input_shape[0], *[filters] * depth]
    stride = 2 if pool == "stride" else 1
    # As a matrix product the first block is faster if its windows are small compared with its output.
    by_windows = 2 * 9 * input_shape[0] <= filters
    return Network(
        shapes=tuple((channels[i + 1], channels[i], 3, 3) for i in range(depth)),
        linear=Strided.of_images(*input_shape[1:]) if stride == 2 else functools.partial(conv2d, padding=1),
        prepare=functools.partial(windows, stride=stride) if by_windows else identity,
        product=(pointwise if stride == 2 else _in_memory_order) if by_windows else None,
        matmul_only=stride == 2,
        after=identity if stride == 2 else halve,
        followed=HALVED,
        readout=functools.partial(torch.mean, dim=(2, 3)) if readout == "mean" else flatten,
        features=filters * (area if readout == "flatten" else 1),
        outputs=outputs,
        norm=norm,
    )


def _in_memory_order(x: Tensor, weight: Tensor) -> Tensor:
    """`pointwise`, channels last in memory only if x is, as for images of one task at a time (compute/task_axis.py):
    under vmap the second derivative of max-pool supports the plain order alone (torch 2.13)."""
    h = pointwise(x, weight)
    return h if x.stride(1) == 1 else h.contiguous()


@dataclass(frozen=True)
class Strided:
    """A 3x3 convolution of stride 2 as one matrix product of its windows.

    With weights per task, a batch of convolutions becomes one convolution with as many groups as tasks. On a CPU the
    same products as a batch of matrices take about half the time, both derivatives included. Windows of stride 2 hold
    2.25 times as many numbers as the image.
    """

    indices: dict[tuple[int, int], Tensor]  # (H, W) of an image -> the pixels of its windows (`stride_2_windows`)

    @classmethod
    def of_images(cls, height: int, width: int) -> Strided:
        """For images of this size and for the feature maps that the blocks make of them."""
        indices = {}
        for _ in range(HALVED):
            indices[height, width] = stride_2_windows(height, width)
            height, width = (height + 1) // 2, (width + 1) // 2
        return cls(indices)

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        # An exported program should run on other devices as well, and a compiler chooses better.
        if _is_traced() or x.device.type not in ("cpu", "meta"):
            return conv2d(x, weight, padding=1, stride=2)
        height, width = x.shape[2:]
        image = pad(x.movedim(1, -1), (0, 0, 1, 1, 1, 1)).flatten(1, 2)
        rows = Gather.apply(image, self.indices[height, width].to(x.device))
        rows = rows.unflatten(1, ((height + 1) // 2, (width + 1) // 2, 9)).flatten(3)
        return linear(rows, weight.permute(0, 2, 3, 1).flatten(1)).movedim(-1, 1)


def halve(h: Tensor) -> Tensor:
    """2x2 max-pool, [B, C, H, W] -> [B, C, H // 2, W // 2].

    Where a compiler fuses it, by comparisons: the second derivative of `max_pool2d` looks numbers up by their indices,
    which takes longer compiled than not. The first of equal numbers wins and NaN stays, as in `max_pool2d`.
    """
    if not _is_traced() or torch.compiler.is_exporting():
        return max_pool2d(h, 2)
    height, width = h.shape[2] // 2, h.shape[3] // 2
    h = h[..., : 2 * height, : 2 * width]
    return _larger(*_larger(h[..., 0::2], h[..., 1::2]).unflatten(2, (height, 2)).unbind(3))


def _larger(a: Tensor, b: Tensor) -> Tensor:
    return torch.where((a >= b) | a.isnan(), a, b)


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or get_proxy_mode() is not None


def _side(side: int, pool: str, depth: int) -> int:
    """The side of the last feature map: stride 2 rounds up, max-pool down."""
    for _ in range(min(depth, HALVED)):
        side = (side + 1) // 2 if pool == "stride" else side // 2
    return side


# The 3x3 windows of images as rows, so that a convolution is a matrix product.


def windows(x: Tensor, stride: int) -> Tensor:
    """The 3x3 window around every pixel that a convolution visits: [B, C, H, W] -> [B, 9 C, H', W']."""
    rows = pad(x, (1, 1, 1, 1)).unfold(2, 3, stride).unfold(3, 3, stride)  # [B, C, H', W', 3, 3]
    if stride == 1 and x.stride(1) != 1:
        return rows.permute(0, 1, 4, 5, 2, 3).flatten(1, 3)
    return rows.permute(0, 2, 3, 1, 4, 5).flatten(3).movedim(-1, 1)


def stride_2_windows(height: int, width: int) -> Tensor:
    """The pixels of a padded image of (H + 2)(W + 2) that windows of stride 2 hold, one window after another."""
    image = torch.arange((height + 2) * (width + 2)).view(1, 1, height + 2, width + 2)
    return image.unfold(2, 3, 2).unfold(3, 3, 2).flatten()


class Gather(Function):
    """x [B, N, C], index [K] -> x[:, index], [B, K, C].

    Like `index_select`, which vmap turns into a `gather` with one index per number, several times slower on a CPU.
    """

    @staticmethod
    def forward(x: Tensor, index: Tensor) -> Tensor:
        return x.index_select(1, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.size = inputs[0].shape[1]
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return Scatter.apply(grads[0], *ctx.saved_tensors, ctx.size), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return Gather.apply(tangents[0], *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, index: Tensor) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        return Gather.apply(x.flatten(0, 1), index).unflatten(0, x.shape[:2]), 0


class Scatter(Function):
    """The adjoint of `Gather`: rows [B, K, C] summed into [B, N, C]."""

    @staticmethod
    def forward(rows: Tensor, index: Tensor, size: int) -> Tensor:
        return rows.new_zeros(len(rows), size, rows.shape[2]).index_add_(1, index, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.size = inputs[2]
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return Gather.apply(grads[0], *ctx.saved_tensors), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return Scatter.apply(tangents[0], *ctx.saved_tensors, ctx.size)

    @staticmethod
    def vmap(info: Any, in_dims: Any, rows: Tensor, index: Tensor, size: int) -> tuple[Tensor, int]:
        rows = rows.movedim(in_dims[0], 0)
        return Scatter.apply(rows.flatten(0, 1), index, size).unflatten(0, rows.shape[:2]), 0
