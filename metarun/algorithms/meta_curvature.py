r"""Meta-Curvature: inner steps along a learned linear map of the gradient (Park and Oliva 2019, arXiv 1902.03356).

    step = lr MC(G),   MC(G) = G x_1 M_1 x_2 M_2 x_3 M_3,   (G x_1 M)_{aqr} = sum_p M_{ap} G_{pqr}, the others likewise

Symbols: G the gradient by one tensor as an array of up to three modes: outputs, inputs, and all taps of a convolution
as one; a bias has the first alone. M_k, a square matrix as large as mode k, is the meta-parameter
`learned.curvature.NAME.k`, k = 0, 1, 2, and starts as the identity: then the step is that of MAML. The rows of a head
of 0, one for each class, have no M_1: no class differs from the others before it is seen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metarun.types import HEAD, LEARNED, Params, UpdateRule

CURVATURE = LEARNED + "curvature."


def shape_modes(shape: torch.Size) -> list[int]:
    """The lengths of the modes of a tensor: one to three."""
    lengths = [*shape, *[1] * (not shape)]
    return lengths if len(lengths) < 3 else [*lengths[:2], shape[2:].numel()]


def init_curvature(weights: Params, zero_head: bool) -> Params:
    """The identity for each mode of each tensor."""
    return {
        f"{CURVATURE}{name}.{mode}": torch.eye(length, dtype=weight.dtype)
        for name, weight in weights.items()
        for mode, length in enumerate(shape_modes(weight.shape))
        if mode or not (zero_head and name.startswith(HEAD))
    }


def curvature_rule(lr: float) -> UpdateRule:
    """step = lr MC(g)."""

    def init(adapted: Params, theta: Params) -> Any:
        return {name: value for name, value in theta.items() if name.startswith(CURVATURE)}

    def step(g: Params, state: Any) -> tuple[Params, Any]:
        return {name: lr * multiply_modes(name, slope, state) for name, slope in g.items()}, state

    return UpdateRule(init, step, lr=torch.inf)


def multiply_modes(name: str, gradient: Tensor, matrices: Params) -> Tensor:
    """MC(G) of the tensor `name`, in the shape of the tensor."""
    lengths = shape_modes(gradient.shape)
    product = gradient.reshape(lengths)
    for mode in range(len(lengths)):
        matrix = matrices.get(f"{CURVATURE}{name}.{mode}")
        if matrix is not None:
            product = torch.tensordot(matrix, product, ([1], [mode])).movedim(0, mode)
    return product.reshape(gradient.shape)
