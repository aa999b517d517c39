"""functions.json: the predictions of a learner of distributions on a few test tasks, for a figure.

For data with one input and one target: along x, at the data set's reference inputs. For image completion (a data set
with a `picture`, its rows and columns): at all pixels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from metarun.training.evaluation import EPISODE_SEED, Evaluator
from metarun.types import Algorithm, Batch, DatasetOptions, DistributionLearner, Params, Task, optional

TASKS, POINTS, DRAWS, PICTURES = 4, 200, 8, 6


def sample_functions(tester: Evaluator, learner: Algorithm, params: Params) -> dict[str, Any] | None:
    """Mean, deviation and draws of each task's function, its support and query points, and the oracle's band if there
    is one; for image completion the pictures. None for other learners and data."""
    dataset, spec = tester.dataset, tester.spec
    picture = optional(dataset, DatasetOptions, "picture")
    if not isinstance(learner, DistributionLearner) or dataset.outputs(1) != 1:
        return None
    if picture:
        return sample_pictures(tester, learner, params, picture)
    if dataset.input_shape() != (1,):
        return None
    tasks = range(min(TASKS, tester.tasks))
    episodes = tester.placement.move_task(dataset.episodes(tester.split, EPISODE_SEED, 0, tasks, spec))
    points = dataset.reference_inputs(POINTS)
    x = tester.placement.move(points)
    with torch.no_grad():
        found = [describe_function(learner, params, Task(*(Batch(b.x[i], b.y[i]) for b in episodes)), x) for i in tasks]
    oracle_band = optional(dataset, DatasetOptions, "oracle_band")
    if oracle_band:
        bands = oracle_band(tester.split, EPISODE_SEED, 0, tasks, spec, points[:, 0].double().numpy())
        for row, mean, deviation in zip(found, *bands, strict=True):
            row |= {"oracle_mean": mean.tolist(), "oracle_deviation": deviation.tolist()}
    return {"x": to_list(points[:, 0]), "tasks": found}


def describe_function(learner: DistributionLearner, params: Params, task: Task, x: Tensor) -> dict[str, Any]:
    adapted = learner.adapt(params, task.support)
    mean, deviation = learner.predict(adapted, x).chunk(2, -1)
    return {
        "mean": to_list(mean[:, 0]),
        "deviation": to_list(deviation[:, 0]),
        "draws": [to_list(row) for row in learner.functions(adapted, x, DRAWS)[..., 0]],
        "context": [to_list(v[:, 0]) for v in task.support],
        "targets": [to_list(v[:, 0]) for v in task.query],
    }


def sample_pictures(
    tester: Evaluator, learner: DistributionLearner, params: Params, picture: tuple[int, int]
) -> dict[str, Any]:
    """Mean, deviation and truth of every pixel [P], row by row; the context's rows, columns and values."""
    tasks, spec = range(min(PICTURES, tester.tasks)), tester.spec._replace(queries=math.prod(picture))
    episodes = tester.placement.move_task(tester.dataset.episodes(tester.split, EPISODE_SEED, 0, tasks, spec))
    with torch.no_grad():
        found = [
            _describe_picture(learner, params, Task(*(Batch(b.x[i], b.y[i]) for b in episodes)), picture) for i in tasks
        ]
    return {"picture": list(picture), "tasks": found}


def _describe_picture(
    learner: DistributionLearner, params: Params, task: Task, picture: tuple[int, int]
) -> dict[str, Any]:
    mean, deviation = learner.predict(learner.adapt(params, task.support), task.query.x).chunk(2, -1)
    sides = task.support.x.new_tensor([side - 1 for side in picture])
    row, column = ((task.support.x + 1) / 2 * sides).round().unbind(-1)
    context = [to_list(v) for v in (row, column, task.support.y[:, 0])]
    shown = {"mean": mean, "deviation": deviation, "truth": task.query.y}
    return {name: to_list(v[:, 0]) for name, v in shown.items()} | {"context": context}


def to_list(values: Tensor) -> list[float]:
    return values.double().cpu().tolist()
