"""The chance level of a regression and of a classification."""

from __future__ import annotations

import math

import torch

from metarun.algorithms.losses import CrossEntropy, MeanSquaredError
from metarun.diagnostics.chance import chance_level
from metarun.types import Batch, EpisodeSpec, Task


class TwoTasks:
    """A regression data set whose first validation task has targets 0, 2 and 4, the second 1, 1 and 5, 5."""

    kind = "regression"

    def episodes(self, split: str, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        assert (split, seed, step, tasks) == ("val", 3, 0, range(2))
        x = torch.zeros(2, 2, 1)
        support, query = torch.tensor([[0.0, 2.0], [1.0, 1.0]]), torch.tensor([[4.0, 1.0], [5.0, 5.0]])
        return Task(Batch(x, support[..., None]), Batch(x, query[..., None]))


def test_chance_is_the_mean_of_the_support_targets_or_a_uniform_guess() -> None:
    """Means 1 and 1; errors 9, 0 and 16, 16: (4.5 + 16) / 2 = 10.25."""
    spec = EpisodeSpec(1, 2, 2)
    assert chance_level(TwoTasks(), MeanSquaredError(), spec, spec, 2, 3) == (10.25, 10.25)  # type: ignore[arg-type]
    classes = type("Classes", (), {"kind": "classification"})()
    assert chance_level(classes, CrossEntropy(), EpisodeSpec(60, 1, 1), EpisodeSpec(5, 1, 1), 2, 0) == (
        0.2,
        math.log(60),
    )


class Noise:
    """Targets that are +1 or -1 in turn: two support rows a task, whose mean is 1, 0 or -1."""

    kind = "regression"

    def episodes(self, split: str, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        support = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])[..., None]
        query = torch.tensor([1.0, -1.0]).expand(4, 2)[..., None]
        return Task(Batch(support, support), Batch(query, query))


def test_where_the_targets_of_a_task_tell_nothing_one_constant_for_all_tasks_is_chance() -> None:
    """Variance 1. The constant 0 has the error 1, the means of K = 2 support targets have 1 + 1/2."""
    spec = EpisodeSpec(1, 2, 2)
    assert chance_level(Noise(), MeanSquaredError(), spec, spec, 4, 0) == (1.0, 1.0)  # type: ignore[arg-type]
