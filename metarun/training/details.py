"""`test.details=true`: what the learner predicts for every query of the test, as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from metarun.compute.task_axis import map_tasks
from metarun.storage.text import round_digits
from metarun.training.evaluation import EPISODE_SEED, TASKS_PER_DRAW, Evaluator, calibrate
from metarun.types import Algorithm, DatasetOptions, Params, Task, optional

Row = dict[str, Any]


def describe_queries(tester: Evaluator, learner: Algorithm, params: Params) -> Iterator[Row]:
    """A row for each query of each test task, after the adaptation step whose metric is the result.

    Where the data set has names of its queries: the query's file, or its line.

    Classification: the query's class and the predicted one by their names in the data set (their places in the task,
    if it has none), and the probabilities of both. Regression: the inputs if they are few numbers, the targets, the
    predictions, and the deviations of a learner that predicts Gaussians.
    """
    learner = calibrate(learner, params, tester.dataset, tester.placement)
    names_of, queries_of = (optional(tester.dataset, DatasetOptions, n) for n in ("class_names", "query_names"))
    noun = optional(tester.dataset, DatasetOptions, "row")
    for start in range(0, tester.tasks, TASKS_PER_DRAW):
        indices = range(start, min(start + TASKS_PER_DRAW, tester.tasks))
        drawn = tester.dataset.episodes(tester.split, EPISODE_SEED, 0, indices, tester.spec)
        predictions = _predict(tester, learner, params, tester.placement.move_task(drawn))
        where = tester.split, EPISODE_SEED, 0, indices, tester.spec
        names = names_of(*where) if names_of else [tuple(map(str, range(tester.spec.ways)))] * len(indices)
        queries = queries_of(*where) if queries_of else [None] * len(indices)
        for task, prediction, x, y, classes, rows_of in zip(
            indices, predictions, *drawn.query, names, queries, strict=True
        ):
            if tester.dataset.kind == "classification":
                rows = _describe_classes(prediction, y, classes)
            else:
                rows = _describe_values(prediction, x, y)
            for number, row in enumerate(rows):
                yield {"task": task, "query": number} | ({noun: rows_of[number]} if rows_of else {}) | row


def _predict(tester: Evaluator, learner: Algorithm, params: Params, tasks: Task) -> Tensor:
    """[T, M, ...] on the CPU."""

    def one(params: Params, task: Task) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        *_, adapted = learner.adaptations(params, task.support, learner.test_inner_steps)
        return {"prediction": learner.predict(adapted, task.query.x)}, {}

    chunk = tester.placement.evaluation_chunk(tester.spec, tester.dataset.input_shape())
    with torch.no_grad():
        return map_tasks(one, len(tasks.support.x), chunk)(params, tasks)[0]["prediction"].cpu()


def _describe_classes(logits: Tensor, y: Tensor, names: tuple[str, ...]) -> Iterator[Row]:
    for probabilities, label in zip(logits.double().softmax(-1), y.tolist(), strict=True):
        best = int(probabilities.argmax())
        yield {
            "class": names[label],
            "predicted": names[best],
            "correct": int(best == label),
            "p_class": round_digits(float(probabilities[label])),
            "p_predicted": round_digits(float(probabilities[best])),
        }


def _describe_values(prediction: Tensor, x: Tensor, y: Tensor) -> Iterator[Row]:
    outputs = y.shape[1]
    few = x.ndim == 2 and x.shape[1] <= outputs + 8
    for row_of in zip(prediction.tolist(), x.tolist() if few else [[]] * len(y), y.tolist(), strict=True):
        values, inputs, targets = ([round_digits(value) for value in part] for part in row_of)
        row = {f"x{i}": value for i, value in enumerate(inputs)}
        row |= {f"y{i}": value for i, value in enumerate(targets)}
        row |= {f"predicted{i}": value for i, value in enumerate(values[:outputs])}
        yield row | {f"deviation{i}": value for i, value in enumerate(values[outputs:])}
