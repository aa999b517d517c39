"""The fixed tasks that probes are taken on, and what every probe does with them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from metarun.algorithms.inner_loop import last
from metarun.compute.distributed import SINGLE_PROCESS, ProcessGroup
from metarun.compute.task_axis import PerTask, map_tasks
from metarun.types import NOT_WEIGHTS, Batch, GradientLearner, Metrics, Params, Task

SMALL_MODEL = 20_000
"""Weights below which a probe may cost some hundred meta-gradients (MLP 40-40 has 1761)."""


class ProbeTasks(NamedTuple):
    drawn: Task  # with a leading T axis
    chunk: int | None  # of these that vmap handles at once
    processes: ProcessGroup = SINGLE_PROCESS  # the processes that share them

    def each(self, one: PerTask, params: Params) -> tuple[Metrics, Metrics]:
        """Both results of (theta, task), with a leading T axis; no gradient flows."""
        with torch.no_grad():
            return map_tasks(one, len(self.drawn.support.x), self.chunk, processes=self.processes)(params, self.drawn)

    def mean(self, one: PerTask, params: Params) -> dict[str, float]:
        """Mean over tasks of the scalars that come first."""
        return {name: float(v.double().mean()) for name, v in self.each(one, params)[0].items()}


def network_weights(params: Params) -> Params:
    """The weights of the network, without the other meta-parameters (a penalty's own, learned rates, moments)."""
    return {name: p for name, p in params.items() if not name.startswith(NOT_WEIGHTS)}


def adapted_weights(learner: GradientLearner, theta: Params, support: Batch) -> Params:
    """phi after `inner_steps` of one task."""
    return last(learner.adaptations(theta, support, learner.inner_steps)).params
