"""functions.json: what a learner of distributions predicts on a few test tasks, for a figure.

Of data with one input and one target: along x, at the places of the data set's reference inputs. Of images that are
completed (a data set with a `picture`, its rows and columns): for all pixels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from metarun.training.evaluation import EPISODE_SEED, Evaluator
from metarun.types import Algorithm, Batch, DistributionLearner, Params, Task

TASKS, PLACES, DRAWS, PICTURES = 4, 200, 8, 6


def sample_functions(tester: Evaluator, learner: Algorithm, params: Params) -> dict[str, Any] | None:
    """Mean, deviation and draws of each task's function, its points, and the oracle's where there is one; or pictures
    of the same."""
    dataset, spec = tester.dataset, tester.spec
    picture = getattr(dataset, "picture", None)
    if not isinstance(learner, DistributionLearner) or dataset.outputs(1) != 1:
        return None
    if picture:
        return completed(tester, learner, params, picture)
    if dataset.input_shape() != (1,):
        return None
    tasks = range(min(TASKS, tester.tasks))
    placed = tester.placement.task(dataset.episodes(tester.split, EPISODE_SEED, 0, tasks, spec))
    places = dataset.reference_inputs(PLACES)
    x = tester.placement.inputs(places)
    with torch.no_grad():
        found = [of_task(learner, params, Task(*(Batch(b.x[i], b.y[i]) for b in placed)), x) for i in tasks]
    known = getattr(dataset, "oracle_band", None)
    if known:
        bands = known(tester.split, EPISODE_SEED, 0, tasks, spec, places[:, 0].double().numpy())
        for row, mean, deviation in zip(found, *bands, strict=True):
            row |= {"oracle_mean": mean.tolist(), "oracle_deviation": deviation.tolist()}
    return {"x": listed(places[:, 0]), "tasks": found}


def of_task(learner: DistributionLearner, params: Params, task: Task, x: Tensor) -> dict[str, Any]:
    adapted = learner.adapt(params, task.support)
    mean, deviation = learner.predict(adapted, x).chunk(2, -1)
    return {
        "mean": listed(mean[:, 0]),
        "deviation": listed(deviation[:, 0]),
        "draws": [listed(row) for row in learner.functions(adapted, x, DRAWS)[..., 0]],
        "context": [listed(v[:, 0]) for v in task.support],
        "targets": [listed(v[:, 0]) for v in task.query],
    }


def completed(
    tester: Evaluator, learner: DistributionLearner, params: Params, picture: tuple[int, int]
) -> dict[str, Any]:
    """Mean, deviation and truth of every pixel [P], row by row; the context's rows, columns and values."""
    tasks, spec = range(min(PICTURES, tester.tasks)), tester.spec._replace(queries=math.prod(picture))
    placed = tester.placement.task(tester.dataset.episodes(tester.split, EPISODE_SEED, 0, tasks, spec))
    with torch.no_grad():
        found = [_picture(learner, params, Task(*(Batch(b.x[i], b.y[i]) for b in placed)), picture) for i in tasks]
    return {"picture": list(picture), "tasks": found}


def _picture(learner: DistributionLearner, params: Params, task: Task, picture: tuple[int, int]) -> dict[str, Any]:
    mean, deviation = learner.predict(learner.adapt(params, task.support), task.query.x).chunk(2, -1)
    sides = task.support.x.new_tensor([side - 1 for side in picture])
    row, column = ((task.support.x + 1) / 2 * sides).round().unbind(-1)
    context = [listed(v) for v in (row, column, task.support.y[:, 0])]
    shown = {"mean": mean, "deviation": deviation, "truth": task.query.y}
    return {name: listed(v[:, 0]) for name, v in shown.items()} | {"context": context}


def listed(values: Tensor) -> list[float]:
    return values.double().cpu().tolist()
