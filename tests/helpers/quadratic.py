r"""Tasks whose every derivative is known: a linear model under the mean squared error.

    L(w) = (1 / (n d)) |X w - Y|^2      X [n, D] inputs (a column of ones appended for a bias), Y [n, d], w [D, d]
    grad L(w) = (2 / (n d)) X^T (X w - Y) = H (w - w*)
    H = (2 / (n d)) X^T X               which acts on each of the d columns of w alike
    w* = (X^T X)^{-1} X^T Y             the minimiser, for X of full column rank

All in float64. `matrix` and `weights` go between the model's dictionary and w.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from metarun.types import Batch, EpisodeSpec, Kind, Params, Split, Task

EXACT = 1e-9
"""Relative tolerance of a closed form in float64: sums of a few hundred terms round to about 1e-13."""


@dataclass(frozen=True)
class LinearModel:
    """x w, or x w + b."""

    inputs: int
    outputs: int
    bias: bool = False

    @property
    def features(self) -> int:
        """There is nothing before the linear map: as an embedding, its outputs are its features."""
        return self.outputs

    def init(self, seed: int) -> Params:
        draw = torch.Generator().manual_seed(seed)
        w = torch.randn(self.inputs + self.bias, self.outputs, generator=draw, dtype=torch.float64)
        return weights(w, self.bias)

    def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
        return x @ params["w"] + params.get("b", 0.0)

    def query_stats(self, params: Params, support_x: Tensor) -> None:
        return None

    def calibrate(self, params: Params, x: Tensor) -> LinearModel:
        return self


def matrix(params: Params) -> Tensor:
    """w [D, d], the bias as its last row."""
    return torch.cat([params["w"], params["b"][None]]) if "b" in params else params["w"]


def weights(w: Tensor, bias: bool) -> Params:
    """The inverse of `matrix`."""
    return {"w": w[:-1], "b": w[-1]} if bias else {"w": w}


def design(x: Tensor, bias: bool) -> Tensor:
    """X [n, D], with the column of ones that a bias multiplies."""
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1) if bias else x


def hessian(batch: Batch, bias: bool) -> Tensor:
    """H [D, D]."""
    x = design(batch.x, bias)
    return 2 / batch.y.numel() * x.T @ x


def gradient(batch: Batch, w: Tensor, bias: bool) -> Tensor:
    """grad L(w), [D, d]."""
    x = design(batch.x, bias)
    return 2 / batch.y.numel() * x.T @ (x @ w - batch.y)


def loss(batch: Batch, w: Tensor, bias: bool) -> Tensor:
    return (design(batch.x, bias) @ w - batch.y).square().sum() / batch.y.numel()


def minimiser(batch: Batch, bias: bool) -> Tensor:
    """w*, [D, d]."""
    x = design(batch.x, bias)
    return torch.linalg.solve(x.T @ x, x.T @ batch.y)


def random_batch(draw: torch.Generator, rows: int, model: LinearModel) -> Batch:
    x = torch.randn(rows, model.inputs, generator=draw, dtype=torch.float64)
    y = torch.randn(rows, model.outputs, generator=draw, dtype=torch.float64)
    return Batch(x, y)


def random_task(model: LinearModel, seed: int, support: int = 9, query: int = 7) -> Task:
    """Support and query with different inputs and targets, so that neither the Hessians nor the minimisers agree."""
    draw = torch.Generator().manual_seed(1000 + seed)
    return Task(random_batch(draw, support, model), random_batch(draw, query, model))


def stack_tasks(tasks: list[Task]) -> Task:
    """Tasks of one size -> one with a leading T axis."""
    return Task(*(Batch(*(torch.stack(leaf) for leaf in zip(*part, strict=True))) for part in zip(*tasks, strict=True)))


@dataclass(frozen=True)
class QuadraticTasks:
    """A data set of them: task i of a step is a function of (split, seed, step, i)."""

    model: LinearModel

    kind: ClassVar[Kind] = "regression"

    def input_shape(self) -> tuple[int, ...]:
        return (self.model.inputs,)

    def outputs(self, ways: int) -> int:
        return self.model.outputs

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        """Any number of rows can be drawn."""

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        first = ((("train", "val", "test").index(split) * 100 + seed) * 1000 + step) * 1000
        return stack_tasks([random_task(self.model, first + i, spec.shots, spec.queries) for i in tasks])

    def reference_inputs(self, count: int) -> Tensor:
        draw = torch.Generator().manual_seed(0)
        return torch.randn(count, self.model.inputs, generator=draw, dtype=torch.float64)

    def facts(self) -> dict[str, Any]:
        return {}


def assert_same(actual: Tensor | Params, expected: Tensor | Params, rtol: float = EXACT) -> None:
    """Equal up to `rtol` of the largest entry of each tensor: an entry that is 0 by cancellation needs a scale."""
    if isinstance(actual, dict):
        assert actual.keys() == expected.keys()
        for name in actual:
            assert_same(actual[name], expected[name], rtol)
        return
    scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=rtol, atol=rtol * scale)
