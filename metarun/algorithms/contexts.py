r"""Context sets whose size varies from task to task, as tensors of one shape; and the noise of latent variables.

A data set gives every task K support and Q query rows. In training a learner of this family is shown the first n of the
support rows and the first m of the query rows, n ~ U{min_shots .. K} and m ~ U{min_queries .. Q}: what is beyond is
padding, and a mask tells it apart. Tests use all rows, as every other algorithm does.

What a step draws (sizes, noise, the weight of the KL) is a function of (seed, step, number of the task) and goes with
the rows of the inputs, behind their own columns: [x, 1 or 0 for here, KL weight, noise]. Rows without such columns are
all here, with the full weight and noise 0, which is the mean of what is drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.compute import random
from metarun.errors import UserError, require
from metarun.models.multi_network import MultiNetwork
from metarun.types import HEAD, Batch, ModelOptions, Params, Task, optional

MARKS = 2  # columns of the marks: here, weight
ROW_NORMS = ("none", "layer")
"""Norms that normalise each row by itself: sets are padded, and a prediction depends on no other target. Groups do so
too, but have a single unit each in a network of eight."""


def check_network(network: Any, reason: str = "this algorithm's sets are padded, and targets independent") -> Any:
    """Return the network; raise `UserError` if rows of a batch depend on each other in it."""
    norm = optional(network, ModelOptions, "norm") or "none"
    if norm not in ROW_NORMS:
        raise UserError(f"model.norm={norm}: must be one of {', '.join(ROW_NORMS)}: {reason}")
    if all(name.startswith(HEAD) for name in network.init(0)):
        raise UserError(
            "the network (model=linear?) has no hidden units, and encodes a row by a linear map; try model=mlp"
        )
    return network


def check_sizes(sigma_floor: float, **sizes: int) -> None:
    require(0 < sigma_floor < 1, "sigma_floor", sigma_floor, "must be above 0 and below 1")
    for name, size in sizes.items():
        require(size >= 1, name, size, "must be at least 1")


class Rows(NamedTuple):
    """A batch, and the numbers drawn for it."""

    x: Tensor  # [S, d]
    y: Tensor  # [S, d_out]
    here: Tensor  # [S], 1 or 0
    eps: Tensor  # [S, E]
    weight: Tensor  # of the KL, a scalar


@dataclass(frozen=True)
class Draws:
    """The random numbers that an outer step draws for its tasks."""

    inputs: int  # d
    min_shots: int
    min_queries: int
    width: int = 0  # E, numbers of noise
    each_row: bool = False  # has noise of its own; else all rows of a task carry the same
    warmup: int = 0  # outer steps over which the weight of the KL rises from 0
    weight: float = 1.0  # to this

    def __post_init__(self) -> None:
        require(self.min_shots >= 1, "min_shots", self.min_shots, "must be at least 1")
        require(self.min_queries >= 1, "min_queries", self.min_queries, "must be at least 1")
        require(self.warmup >= 0, "kl_warmup", self.warmup, "must be at least 0 (outer steps)")
        sound = 0 <= self.weight < math.inf
        require(sound, "kl_weight", self.weight, "must be at least 0 and finite (1: the evidence bound)")

    def add(self, tasks: Task, seed: int, step: int, first: int) -> Task:
        """Tasks [T, ...] with the columns; `first` is the number of the first of them."""
        numbers = range(first, first + len(tasks.support.x))
        bits = random.size_bits(seed, step, numbers, 2)
        counts = [batch.x.shape[1] for batch in tasks]
        eps = self._noise(seed, step, numbers, counts)
        weight = self.weight * (min(step / self.warmup, 1.0) if self.warmup else 1.0)
        least = self.min_shots, self.min_queries
        parts = []
        for i, batch in enumerate(tasks):
            size = random.uniform(bits[:, i], min(least[i], counts[i]), counts[i] + 1).astype(int)
            here = torch.arange(counts[i]) < torch.from_numpy(size)[:, None]
            columns = [here[..., None], torch.full((*here.shape, 1), weight), eps[i]]
            parts.append(Batch(torch.cat([batch.x, *(c.to(batch.x) for c in columns)], -1), batch.y))
        return Task(*parts)

    def _noise(self, seed: int, step: int, numbers: range, counts: list[int]) -> list[Tensor]:
        """Noise for support and query, [T, rows, E]."""
        each = sum(counts) if self.each_row else 1
        drawn = torch.from_numpy(random.noise(seed, step, numbers, each * self.width)).unflatten(1, (each, self.width))
        if self.each_row:
            return list(drawn.split(counts, 1))
        return [drawn.expand(-1, count, -1) for count in counts]

    def rows(self, batch: Batch) -> Rows:
        """Split the rows of one task."""
        x, marks, eps = batch.x.tensor_split((self.inputs, self.inputs + MARKS), 1)
        if marks.shape[1] == 0:
            ones = torch.ones_like(x[:, 0])
            return Rows(x, batch.y, ones, x.new_zeros(len(x), self.width), self.weight * ones[0])
        return Rows(x, batch.y, marks[:, 0], eps, marks[0, 1])


class Summary(NamedTuple):
    """The summary of a context."""

    params: Params
    r: Tensor  # [R]


def summarize(model: MultiNetwork, params: Params, context: Rows) -> Summary:
    """The mean over the context of the outputs of the part `encoder`."""
    h_SR = model.run("encoder", params, torch.cat([context.x, context.y], -1))
    return Summary(params, masked_mean(h_SR, context.here))


def concatenate(a: Rows, b: Rows) -> Rows:
    """The union of two sets."""
    x, y, here, eps = (torch.cat(pair) for pair in zip(a[:-1], b[:-1], strict=True))
    return Rows(x, y, here, eps, a.weight)


def masked_mean(values: Tensor, here: Tensor) -> Tensor:
    """Over the rows that are here: [S] -> a scalar, [S, D] -> [D]; [.., S] of several samples by the caller."""
    return torch.tensordot(here, values, 1) / here.sum()
