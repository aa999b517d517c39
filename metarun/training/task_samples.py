"""tasks.json: a few test tasks as pictures of the report need them: what the learner saw, and what it predicted.

Of the tasks of the test the hardest, the easiest and those between, by the reported metric:

    functions   one input, one target: predictions along x after 0, 1 and the reported number of adaptation steps
    values      other regressions: predictions and targets of the queries after the same steps
    episodes    classifications: the queries' classes, what they were taken for and with which probability; of images
                small pictures; of a network without a head its features, as their first two principal components

`describe_classes` counts what the queries of some test tasks were taken for, class by class, where classes have names.
"""

from __future__ import annotations

import base64
import dataclasses
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from metarun.compute.task_axis import map_tasks
from metarun.storage.text import round_digits
from metarun.training.details import describe_queries
from metarun.training.evaluation import EPISODE_SEED, Evaluation, Evaluator, calibrate
from metarun.types import (
    Algorithm,
    AlgorithmOptions,
    Batch,
    DatasetOptions,
    DistributionLearner,
    Params,
    Task,
    optional,
)

FUNCTIONS, EPISODES = 4, 3  # tasks that are stored
POINTS = 120  # along x
SIDE = 32  # pixels of a stored picture
MOST_SUPPORT, MOST_QUERIES, MOST_WAYS = 5, 10, 10  # pictures of a class; classes
CLASS_TASKS, CLASS_SHARE = 100, 10  # at most so many tasks are counted, and one in so many of the test


def sample_tasks(tester: Evaluator, learner: Algorithm, params: Params, found: Evaluation) -> dict[str, Any] | None:
    """The tasks as plain numbers; None for a learner that acts, and for functions that functions.json has."""
    dataset = tester.dataset
    calibrated = calibrate(learner, params, dataset, tester.placement)
    scores = found.scores[found.headline]
    if dataset.kind == "classification":
        which = choose_tasks(scores, found.higher_is_better, EPISODES)
        sampled = _sample_episodes(tester, calibrated, params, which)
        classes = describe_classes(tester, learner, params)
        return {"kind": "episodes", "tasks": sampled, **({"classes": classes} if classes else {})}
    if dataset.kind != "regression":
        return None
    which = choose_tasks(scores, found.higher_is_better, FUNCTIONS)
    one_input = dataset.input_shape() == (1,) and dataset.outputs(1) == 1
    if one_input and isinstance(learner, DistributionLearner):
        return None
    return _sample_regressions(tester, calibrated, params, which, one_input)


def choose_tasks(scores: Tensor, higher_is_better: bool, count: int) -> dict[int, str]:
    """Task -> a name: the hardest, the easiest, and those at equal ranks between; what is not finite is hardest."""
    hardness = torch.nan_to_num(-scores if higher_is_better else scores, nan=torch.inf, posinf=torch.inf)
    order = hardness.argsort(stable=True).tolist()
    ranks = torch.linspace(0, len(order) - 1, min(count, len(order))).round().long().tolist()
    last = len(ranks) - 1
    names = {last: "hardest", 0: "easiest"}
    return {order[rank]: names.get(at, "typical") for at, rank in enumerate(ranks)}


def _draw(tester: Evaluator, which: dict[int, str]) -> Task:
    """The tasks, each tensor with a leading T axis."""
    drawn = [tester.dataset.episodes(tester.split, EPISODE_SEED, 0, range(t, t + 1), tester.spec) for t in which]
    sides = ([task.support for task in drawn], [task.query for task in drawn])
    return Task(*(Batch(*(torch.cat(parts) for parts in zip(*side, strict=True))) for side in sides))


def _predict(
    tester: Evaluator, learner: Algorithm, params: Params, tasks: Task, x: Tensor, steps: list[int]
) -> list[Tensor]:
    """The predictions [T, M, ...] at x [T, M, ...] after each of the steps; of a learner without steps its one."""

    def one(params: Params, task: Task) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        states = learner.adaptations(params, task.support, max(steps))
        kept = [adapted for step, adapted in enumerate(states) if step in steps]
        return {str(at): learner.predict(adapted, task.query.x) for at, adapted in enumerate(kept)}, {}

    moved = tester.placement.move_task(Task(tasks.support, Batch(x, x)))
    chunk = tester.placement.evaluation_chunk(tester.spec, tester.dataset.input_shape())
    with torch.no_grad():
        found = map_tasks(one, len(x), chunk)(params, moved)[0]
    return [values.cpu() for values in found.values()]


def _sample_regressions(
    tester: Evaluator, learner: Algorithm, params: Params, which: dict[int, str], one_input: bool
) -> dict[str, Any]:
    tasks, dataset = _draw(tester, which), tester.dataset
    steps = sorted({0, min(1, learner.test_inner_steps), learner.test_inner_steps})
    x = tasks.query.x
    if one_input:
        every = torch.cat([tasks.support.x.flatten(), tasks.query.x.flatten()])
        x = torch.linspace(float(every.min()), float(every.max()), POINTS, dtype=x.dtype)
        x = x[None, :, None].expand(len(which), -1, -1)
    predicted = _predict(tester, learner, params, tasks, x, steps)
    rows = []
    for at, (task, name) in enumerate(which.items()):
        curves = [_numbers(values[at, ..., 0]) for values in predicted]
        row: dict[str, Any] = {"task": task, "which": name, "predicted": curves, "targets": _numbers(tasks.query.y[at])}
        if one_input:
            row["support"] = [_numbers(part[at]) for part in tasks.support]
            row["query_x"] = _numbers(tasks.query.x[at])
        else:
            row["targets"] = _numbers(tasks.query.y[at, ..., 0])
        rows.append(row)
    names = {axis: list(optional(dataset, DatasetOptions, f"{axis}_names"))[:1] for axis in ("x", "y")}
    kind = {"kind": "functions", "x": _numbers(x[0])} if one_input else {"kind": "values"}
    return {**kind, "steps": steps[: len(predicted)], "names": names, "tasks": rows}


def _sample_episodes(
    tester: Evaluator, learner: Algorithm, params: Params, which: dict[int, str]
) -> list[dict[str, Any]]:
    tasks, dataset = _draw(tester, which), tester.dataset
    source = optional(dataset, DatasetOptions, "original") or dataset  # of features, the images
    shown = tasks if source is dataset else _draw(dataclasses.replace(tester, dataset=source), which)
    names_of = optional(dataset, DatasetOptions, "class_names")
    steps = [learner.test_inner_steps]
    logits = _predict(tester, learner, params, tasks, tasks.query.x, steps)[-1]
    rows = []
    for at, (task, name) in enumerate(which.items()):
        where = tester.split, EPISODE_SEED, 0, range(task, task + 1), tester.spec
        classes = names_of(*where)[0] if names_of else tuple(str(k + 1) for k in range(tester.spec.ways))
        own = Task(*(Batch(b.x[at], b.y[at]) for b in tasks))
        images = Task(*(Batch(b.x[at], b.y[at]) for b in shown))
        row = {"task": task, "which": name, "classes": list(classes[:MOST_WAYS])}
        row |= _describe_episode(images, logits[at].double().softmax(-1))
        points = embed(tester, learner, params, own)
        rows.append(row | ({"embedding": points} if points else {}))
    return rows


def _describe_episode(task: Task, probabilities: Tensor) -> dict[str, Any]:
    """The pictures of an episode and what its queries were taken for; of each class the first few."""
    best = probabilities.argmax(-1)
    support = [k for n in range(MOST_WAYS) for k in _rows_of(task.support.y, n)[:MOST_SUPPORT]]
    queries = [k for n in range(MOST_WAYS) for k in _rows_of(task.query.y, n)[:MOST_QUERIES]]
    found: dict[str, Any] = {
        "support": {"class": [int(task.support.y[k]) for k in support]},
        "queries": {
            "class": [int(task.query.y[k]) for k in queries],
            "predicted": [int(best[k]) for k in queries],
            "probability": [round(float(probabilities[k, best[k]]), 4) for k in queries],
        },
        "accuracy": float((best == task.query.y).double().mean()),
    }
    if task.query.x.ndim == 4 and task.query.x.shape[1] in (1, 3):
        pictures = _shrink(torch.cat([task.support.x[support], task.query.x[queries]]))
        found["shape"] = list(pictures.shape[1:])
        coded = [base64.b64encode(picture.numpy().tobytes()).decode("ascii") for picture in pictures]
        found["support"]["pixels"], found["queries"]["pixels"] = coded[: len(support)], coded[len(support) :]
    return found


def _rows_of(labels: Tensor, label: int) -> list[int]:
    rows: list[int] = (labels == label).nonzero()[:, 0].tolist()
    return rows


def _shrink(x: Tensor) -> Tensor:
    """Images [B, C, H, W] of any scale -> bytes [B, H, W, C] with sides of at most `SIDE` pixels; the darkest and the
    lightest value of each channel become 0 and 255."""
    x = x.float()
    scale = SIDE / max(x.shape[-2:])
    if scale < 1:
        x = interpolate(x, size=[max(1, round(side * scale)) for side in x.shape[-2:]], mode="area")
    low, high = x.amin((0, 2, 3), keepdim=True), x.amax((0, 2, 3), keepdim=True)
    return ((x - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8).movedim(1, -1).contiguous()


def embed(tester: Evaluator, learner: Algorithm, params: Params, task: Task) -> dict[str, Any] | None:
    """The features of an episode by their first two principal components; None for a network that ends in a head.

        z_c = z - mean,   z_c = U S V^T,   points = z_c V[:, :2],   explained = S_i^2 / sum S^2

    Symbols: z [S + M, D] the features of support and queries together.
    """
    if learner.head or optional(learner, AlgorithmOptions, "inner_steps"):
        return None
    moved = tester.placement.move_task(task)
    with torch.no_grad():
        stats = learner.model.query_stats(params, moved.support.x)
        parts = [learner.model.apply(params, moved.support.x), learner.model.apply(params, moved.query.x, stats)]
    if parts[0].ndim != 2 or parts[0].shape[1] < 2:
        return None
    z = torch.cat(parts).double().cpu()
    centred = z - z.mean(0)
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    points = centred @ directions[:2].T
    explained = singular.square()[:2] / singular.square().sum().clamp_min(1e-300)
    count = len(task.support.y)
    return {
        "support": _pairs(points[:count]),
        "queries": _pairs(points[count:]),
        "support_class": task.support.y.tolist(),
        "query_class": task.query.y.tolist(),
        "explained": _numbers(explained),
    }


def describe_classes(tester: Evaluator, learner: Algorithm, params: Params) -> dict[str, Any] | None:
    """What the queries of the first test tasks were taken for: rows of task, class, predicted class, queries. At most
    one test task in `CLASS_SHARE`, so that it takes little of the test's time; None for classes without names."""
    tasks = min(CLASS_TASKS, max(1, tester.tasks // CLASS_SHARE))
    if optional(tester.dataset, DatasetOptions, "class_names") is None:
        return None
    few = dataclasses.replace(tester, tasks=tasks)
    rows = describe_queries(few, learner, params)
    counts = Counter((row["task"], row["class"], row["predicted"]) for row in rows)
    return {"tasks": tasks, "rows": [[*key, number] for key, number in counts.items()]}


def _numbers(values: Tensor) -> list[float]:
    return [round_digits(v) for v in values.double().cpu().flatten().tolist()]


def _pairs(points: Tensor) -> list[list[float]]:
    return [[round_digits(v) for v in row] for row in points.tolist()]
