r"""Floating-point operations of the meta-gradient, and how fast the machine multiplies matrices.

Counted are convolutions and matrix products, a multiplication and an addition as two operations; what is done element
by element is left out. A convolution of x [B, C, ...] with w [C', C/G, k...] in G groups, out [B, C', o...]:

    F = 2 B C' prod(o) (C/G) prod(k)      forward, and each of the gradients by x and by w

A task axis that vmap folds into the channels makes G groups of the tasks. torch 2.13 counts the gradient by w as if all
channels met each other, G times too much, so that rule is replaced here.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

SECONDS = 0.5
SIDES = {"cpu": 1024}
SIDE = 8192


def convolution_backward(
    grad_out: Sequence[int],
    x: Sequence[int],
    w: Sequence[int],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: Sequence[bool],
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    """Of aten.convolution_backward, from the shapes of its arguments."""
    positions = x[2:] if transposed else grad_out[2:]
    one = 2 * x[0] * math.prod(positions) * math.prod(w)
    return one * (int(wanted[0]) + int(wanted[1]))


RULES = {torch.ops.aten.convolution_backward: convolution_backward}


def operations(action: Callable[[], Any]) -> int:
    """Of convolutions and matrix products that the action does."""
    with FlopCounterMode(display=False, custom_mapping=RULES) as counter:
        action()
    return counter.get_total_flops()


def matrix_product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square matrix product, the median over half a second."""
    side = SIDES.get(device.type, SIDE)
    a = torch.randn(side, side, device=device, dtype=dtype)
    times: list[float] = []
    _product_seconds(a)
    while sum(times) < SECONDS or len(times) < 5:
        times.append(_product_seconds(a))
    return 2 * side**3 / statistics.median(times)


def _product_seconds(a: torch.Tensor) -> float:
    start = time.perf_counter()
    (a @ a)[0, 0].item()  # which waits for the device
    return time.perf_counter() - start
