"""A data set with a fixed number of training tasks: the setting of stability theory.

The pool S has `size` tasks with their support and query rows, drawn once. Each training task is one of them, chosen
uniformly with replacement as a function of (seed, step, task index). `replaced` = i replaces task i by one from outside
of S and changes nothing else, nor the order of the draws: S and S^(i) of uniform stability (Maurer 2005). Validation
and test are those of the data set.
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
    replaced: int | None

    def __post_init__(self) -> None:
        inside = self.replaced is None or 0 <= self.replaced < self.size
        require(inside, "train.pool_replaced", self.replaced, f"must be 0 to {self.size - 1}, a task of the pool")

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
        return self.dataset.facts() | pool

    @functools.cached_property
    def tasks(self) -> Callable[[EpisodeSpec], Task]:
        """The size of an episode -> all tasks of the pool, in order."""
        return functools.cache(self._draw_tasks)

    def _draw_tasks(self, spec: EpisodeSpec) -> Task:
        drawn = self.dataset.episodes("train", self.seed, POOL_STEP, range(self.size + 1), spec)
        order = torch.arange(self.size)
        if self.replaced is not None:
            order[self.replaced] = self.size  # the task after the last
        return Task(*(Batch(b.x[order], b.y[order]) for b in drawn))
