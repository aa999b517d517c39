"""The 3x3 windows of images as rows, so that a convolution is a matrix product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import pad


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
