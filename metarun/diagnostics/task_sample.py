"""The tasks that measures are taken on, and what every measure does with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from metarun.algorithms.inner_loop import last
from metarun.compute.device import Placement
from metarun.compute.distributed import SINGLE_PROCESS, ProcessGroup
from metarun.compute.task_axis import PerTask, map_tasks
from metarun.types import NOT_WEIGHTS, Batch, Dataset, EpisodeSpec, GradientLearner, Metrics, Params, Split, Task

SMALL_MODEL = 20_000
"""Weights below which a probe may cost some hundred meta-gradients (MLP 40-40 has 1761)."""


class TaskSample(NamedTuple):
    tasks: Task  # with a leading T axis
    chunk: int | None = None  # tasks that vmap handles at once; None: all
    processes: ProcessGroup = SINGLE_PROCESS  # the processes that share them

    def each(self, function: PerTask, params: Params) -> tuple[Metrics, Metrics]:
        """Both results of function(theta, task) with a leading T axis; no gradient flows."""
        with torch.no_grad():
            mapped = map_tasks(function, len(self.tasks.support.x), self.chunk, processes=self.processes)
            return mapped(params, self.tasks)

    def measure(self, function: Callable[[Params, Task], Metrics], params: Params) -> Metrics:
        """The scalars function(theta, task) of each task [T]; no gradient flows."""
        return self.each(lambda theta, task: (function(theta, task), {}), params)[0]

    def mean(self, function: Callable[[Params, Task], Metrics], params: Params) -> dict[str, float]:
        """The means over tasks of these scalars."""
        return mean_metrics(self.measure(function, params))


def draw_sample(
    dataset: Dataset, split: Split, seed: int, step: int, count: int, spec: EpisodeSpec, placement: Placement
) -> TaskSample:
    """The first tasks of a step, for measures that take Hessian products."""
    drawn = dataset.episodes(split, seed, step, range(count), spec)
    chunk = placement.evaluation_chunk(spec, dataset.input_shape())
    if placement.chunk_size == "auto" and chunk is not None:
        chunk = 1  # Hessian products of images on a CPU: convolutions that vmap batched take 3.5 times as long
    return TaskSample(placement.move_task(drawn), chunk, placement.processes)


def mean_metrics(metrics: Metrics) -> dict[str, float]:
    """The mean of each metric [T], or the metric itself where it is a scalar."""
    return {name: float(values.double().mean()) for name, values in metrics.items()}


def network_weights(params: Params) -> Params:
    """The weights of the network, without the other meta-parameters (a penalty's own, learned rates, moments)."""
    return {name: p for name, p in params.items() if not name.startswith(NOT_WEIGHTS)}


def mean_gradient(gradients: Params) -> Params:
    """The mean of per-task gradients [T, ...]."""
    return {name: g.mean(0) for name, g in gradients.items()}


def adapted_weights(learner: GradientLearner, theta: Params, support: Batch) -> Params:
    """phi after `inner_steps` of one task."""
    return last(learner.adaptations(theta, support, learner.inner_steps)).params
