"""functions.json: what a learner of distributions predicts along x on a few test tasks, for a figure.

Only of data with one input and one target. The places are those of the data set's reference inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metarun.evaluation import EPISODE_SEED, Evaluator
from metarun.types import Algorithm, Batch, DistributionLearner, Params, Task

TASKS, PLACES, DRAWS = 4, 200, 8


def predicted_functions(tester: Evaluator, learner: Algorithm, params: Params) -> dict[str, Any] | None:
    """Mean, deviation and draws of each task's function, its points, and the oracle's where there is one."""
    dataset, spec = tester.dataset, tester.spec
    if not isinstance(learner, DistributionLearner) or dataset.input_shape() != (1,) or dataset.outputs(1) != 1:
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


def listed(values: Tensor) -> list[float]:
    return values.double().cpu().tolist()
