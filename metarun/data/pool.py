"""A data set with a fixed number of training tasks: the setting of stability theory.

The pool S has `size` tasks with their support and query rows, drawn once. Each training task is one of them, chosen
uniformly with replacement as a function of (seed, step, task index). `replaced` = i replaces task i by one from outside
of S and changes nothing else, nor the order of the draws: S and S^(i) of uniform stability (Maurer 2005). `choice` = c
takes each task of S or its substitute, of `size` further tasks, by bits that c decides: the subset of a supersample
(Steinke and Zakynthinou 2020). Validation and test are those of the data set.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarun.compute.random import random_bits, uniform
from metarun.errors import require
from metarun.types import Batch, Dataset, EpisodeSpec, Kind, Split, Task

POOL_STEP = 2**41
"""The pool consists of tasks of this step, which no training reaches."""


@dataclass(frozen=True)
class TaskPool:
    dataset: Dataset
    size: int
    seed: int  # of the pool, not of the run
    replaced: int | None = None
    choice: int | None = None

    def __post_init__(self) -> None:
        inside = self.replaced is None or 0 <= self.replaced < self.size
        require(inside, "train.pool_replaced", self.replaced, f"must be 0 to {self.size - 1}, a task of the pool")
        alone = self.choice is None or self.replaced is None
        require(
            alone, "train.pool_choice", self.choice, "cannot be set with train.pool_replaced: it replaces tasks itself"
        )

    @property
    def kind(self) -> Kind:
        return self.dataset.kind

    def input_shape(self) -> tuple[int, ...]:
        return self.dataset.input_shape()

    def outputs(self, ways: int) -> int:
        return self.dataset.outputs(ways)

    def reference_inputs(self, count: int) -> Tensor:
        return self.dataset.reference_inputs(count)

    def __getattr__(self, name: str) -> Any:
        """The optional members of the data set (`DatasetOptions`)."""
        if name.startswith("__"):  # a copy is asked for these before it has its fields
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        self.dataset.check(split, spec)

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        if split != "train":
            return self.dataset.episodes(split, seed, step, tasks, spec)
        chosen = uniform(random_bits("train", seed, step, tasks, 1)[:, 0], 0, self.size)
        index = torch.from_numpy(chosen.astype("int64"))
        return Task(*(Batch(b.x[index], b.y[index]) for b in self.tasks(spec)))

    def facts(self) -> dict[str, Any]:
        pool = {"pool": self.size, "pool_seed": self.seed, "pool_replaced": self.replaced}
        return self.dataset.facts() | pool | ({} if self.choice is None else {"pool_choice": self.choice})

    @functools.cached_property
    def tasks(self) -> Callable[[EpisodeSpec], Task]:
        """The size of an episode -> all tasks of the pool, in order."""
        return functools.cache(self._draw_tasks)

    def _draw_tasks(self, spec: EpisodeSpec) -> Task:
        drawn = self.candidates(spec, self.size + 1 if self.choice is None else 2 * self.size)
        order = torch.arange(self.size) + self.size * self.substituted().long()
        if self.replaced is not None:
            order[self.replaced] = self.size  # the task after the last
        return Task(*(Batch(b.x[order], b.y[order]) for b in drawn))

    def candidates(self, spec: EpisodeSpec, count: int) -> Task:
        """The first of the tasks that pools are made of: task i, and from number `size` on the substitutes in order."""
        return self.dataset.episodes("train", self.seed, POOL_STEP, range(count), spec)

    def substituted(self) -> Tensor:
        """Whether each task of the pool is its substitute, [size]."""
        if self.choice is None:
            return torch.zeros(self.size, dtype=torch.bool)
        bits = random_bits("train", self.choice, POOL_STEP, range(self.size), 1)[:, 0]
        return torch.from_numpy(uniform(bits, 0, 2).astype("int64")) == 1
