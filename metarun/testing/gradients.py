"""Comparisons of trees of tensors, and slopes by differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metarun.compute.linalg import axpy, dot, flatten, norm, scale, sub
from metarun.testing.failure import expect
from metarun.types import Params

EXACT = 1e-9
"""Relative limit of two computations of one formula in float64: sums of a few hundred terms round to about 1e-13."""

SLOPE = 1e-6
"""Limit of a slope's error, relative to the gradient's length."""

TRIALS = ((0, 1e-6), (1, 1e-6), (2, 1e-7), (3, 1e-7), (4, 1e-8))
"""Directions (by seed) and steps of central differences in float64, whose errors, the third derivative times step^2 and
the rounding 1e-16 / step, are far below SLOPE. A kink of a ReLU or a tie of max pooling between both ends spoils a
difference: one of the trials must hold, and a wrong gradient meets none."""


def list_tensors(tree: Any) -> list[Tensor]:
    """The tensors of nested dictionaries and tuples: an adapted state, or (gradient, metrics)."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (tuple, list)):
        return []
    return [tensor for part in tree for tensor in list_tensors(part)]


def copy_tensors(tree: Any) -> list[Tensor]:
    return [tensor.clone() for tensor in list_tensors(tree)]


def are_equal(found: Any, expected: Any) -> bool:
    """Whether two trees have the same bits, NaN included."""
    pairs = list_tensors(found), list_tensors(expected)
    return len(pairs[0]) == len(pairs[1]) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(*pairs, strict=True)
    )


def relative_error(found: Params, expected: Params) -> float:
    """|found - expected| / |expected| as vectors: single entries may vanish and have no scale of their own."""
    length = float(norm(expected))
    difference = float(norm(sub(found, expected)))
    return difference / length if length else difference


def expect_close(found: Params, expected: Params, what: str, cause: str, limit: float = EXACT) -> None:
    """Expect the same names, and a relative error below the limit."""
    expect(found.keys() == expected.keys(), f"{what}: its names are {[*found]}, not {[*expected]}", cause)
    error = relative_error(found, expected)
    expect(error <= limit, f"{what} differs by {error:.1e} of its length (limit {limit:.0e})", cause)


def expect_close_tensors(found: Tensor, expected: Tensor, what: str, cause: str, limit: float = EXACT) -> None:
    """Expect one shape, and every entry within the limit, relative to the largest entry."""
    expect(found.shape == expected.shape, f"{what}: its shape is {[*found.shape]}, not {[*expected.shape]}", cause)
    largest = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    error = float((found - expected).abs().max()) / largest if expected.numel() else 0.0
    expect(error <= limit, f"{what} differs by {error:.1e} (limit {limit:.0e})", cause)


def draw_direction(params: Params, seed: int = 1) -> Params:
    """A random unit vector."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {k: torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in params.items()}
    return scale(1 / norm(drawn), drawn)


def expect_slope(function: Callable[[Params], Tensor], gradient: Params, at: Params, what: str, cause: str) -> None:
    """Expect <g, v> = (f(x + h v) - f(x - h v)) / 2h + O(h^2) along a random unit v, within SLOPE |g|."""
    length = max(float(flatten(gradient).norm()), EXACT)
    errors = []
    for seed, step in TRIALS:
        v = draw_direction(at, seed)
        up, down = (float(function(axpy(sign * step, v, at))) for sign in (1, -1))
        measured, slope = (up - down) / (2 * step), float(dot(gradient, {k: v[k] for k in gradient}))
        errors.append(abs(measured - slope))
        if errors[-1] <= SLOPE * length + EXACT:
            return
    found = f"{what}: off by {min(errors) / length:.1e} of its length (limit {SLOPE:.0e}) from a central difference"
    expect(False, f"{found} along a random direction", cause)
