r"""Task diversity: how different the tasks of a split are, as the run's network sees them.

    e_t[u] = mean over the weights w into unit u of  F_w = (1/M) sum_m sum_k p_k(x_m) (d log p_k(x_m) / d w)^2
    diversity = (2 / (T (T - 1))) sum_{s < t} 1 - cos(e_s, e_t)

e_t is the Task2Vec embedding of task t (Achille et al. 2019, arXiv 1902.03545): the diagonal of the Fisher information
of the network before its head on the task's queries, averaged over each unit or filter; of a regression with values f,
F_w = (1/M) sum_m |d f(x_m) / d w|^2. The diversity coefficient is that of Miranda et al. 2022 (arXiv 2208.01545), who
take a fixed pretrained network and find that learners of few different tasks do no better than a refitted head. Here
the network is the run's: p are the predictions after adaptation, and w the adapted weights where a learner adapts by
gradient steps, else theta, differentiated through the adaptation. Values of different networks do not compare.

The interval is a jackknife over tasks. Symbols: T tasks, M queries, N ways, u units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev, vmap

from metarun.algorithms.inner_loop import last
from metarun.analyses.analysis import Cell, Context, Row, require_at_least
from metarun.compute.task_axis import map_tasks
from metarun.errors import UserError
from metarun.report.figures.drawing import Drawing, finish, panels
from metarun.report.statistics.intervals import NORMAL_95, Array
from metarun.training.evaluation import EPISODE_SEED
from metarun.types import HEAD, NOT_WEIGHTS, Adapted, Algorithm, GradientLearner, Params, Split, Task

SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True)
class TaskDiversity:
    tasks: int
    queries: int

    def __post_init__(self) -> None:
        require_at_least(self, tasks=3, queries=1)

    def cells(self, context: Context) -> Sequence[Cell]:
        """One cell per split and task."""
        experiment = context.run.experiment
        if experiment.dataset.kind == "control" or not body(context.run.params):
            raise UserError(
                "analysis=task_diversity: needs a network with layers before its head, and data with targets"
            )
        return [{"split": split, "task": i, "queries": self.queries} for split in SPLITS for i in range(self.tasks)]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        experiment, learner = context.run.experiment, context.run.learner
        spec, index = experiment.test_spec._replace(queries=cell["queries"]), cell["task"]
        drawn = experiment.dataset.episodes(cell["split"], EPISODE_SEED, 0, range(index, index + 1), spec)
        classes = experiment.dataset.kind == "classification"

        def one(theta: Params, task: Task) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            return {"embedding": embed(learner, theta, task, classes)}, {}

        found = map_tasks(one, 1, 1)(context.run.params, experiment.placement.move_task(drawn))[0]["embedding"][0]
        return {"norm": float(found.norm()), "embedding": found.tolist()}

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        summary: dict[str, Any] = {}
        for split in SPLITS:
            distances = pair_distances(np.array([row["embedding"] for row in rows if row["split"] == split]))
            summary[split], summary[f"{split}_ci95"] = mean_distance(distances)
            summary[f"{split}_distances"] = distances[np.triu_indices(len(distances), 1)].tolist()
        found = [f"{split} tasks {summary[split]:.3g} +- {summary[f'{split}_ci95']:.2g}" for split in SPLITS]
        message = f"diversity (mean cosine distance of two tasks' Fisher information): {', '.join(found)}"
        apart = summary["test"] - summary["train"]
        if apart > np.hypot(summary["test_ci95"], summary["train_ci95"]):
            message += "\ntest tasks differ more than training tasks: more varied training tasks may help"
        return summary | {"message": message}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        """Histograms of the distances of all pairs."""
        figure, (axes,) = panels(1, columns=2, height=2.9)
        values = [np.array(summary[f"{split}_distances"]) for split in SPLITS]
        axes.hist(values, bins=20, density=True, label=[f"{split} tasks" for split in SPLITS])
        axes.legend()
        finish(axes, "Distance of two tasks", "1 - cosine of their embeddings", "density")
        return [Drawing("task_diversity", summary["message"], figure)]


def body(params: Params) -> Params:
    """The weights of maps into units, before the head."""
    return {n: w for n, w in params.items() if w.ndim > 1 and not n.startswith((HEAD, *NOT_WEIGHTS))}


def embed(learner: Algorithm, theta: Params, task: Task, classes: bool) -> Tensor:
    """e_t [u] of one task."""
    by_gradient = isinstance(learner, GradientLearner)
    state: Adapted = last(learner.adaptations(theta, task.support, learner.test_inner_steps)) if by_gradient else None
    start = state.params if by_gradient else theta

    def outputs(weights: Params, x: Tensor) -> Tensor:
        if by_gradient:
            return learner.predict(state._replace(params=start | weights), x[None])[0]
        return learner.predict(learner.adapt(start | weights, task.support), x[None])[0]

    def information(x: Tensor) -> Params:
        """F of one query, averaged over the weights into each unit."""
        slopes = jacrev(outputs)(body(start), x)
        p = outputs(body(start), x).softmax(-1)

        def of_tensor(slope: Tensor) -> Tensor:
            rows = slope.flatten(2)  # [N, units, weights]
            if not classes:
                return rows.square().sum(0).mean(-1)
            centred = rows - (p[:, None, None] * rows).sum(0)
            return (p[:, None, None] * centred.square()).sum(0).mean(-1)

        return {name: of_tensor(slope) for name, slope in slopes.items()}

    found = vmap(information, chunk_size=8)(task.query.x)
    return torch.cat([values.mean(0).double() for values in found.values()])


def pair_distances(embeddings: Array) -> Array:
    """1 - cos of each pair [T, T]; 1 where an embedding is 0."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    units = embeddings / np.where(lengths > 0, lengths, 1.0)
    return 1 - units @ units.T


def mean_distance(distances: Array) -> tuple[float, float]:
    """The mean over pairs s < t of [T, T], and half of its 95 % interval by a jackknife over tasks."""
    count = len(distances)
    total = float(distances.sum() - np.trace(distances))
    own = distances.sum(1) - np.diag(distances)
    left_out = (total - 2 * own) / ((count - 1) * (count - 2))
    error = np.sqrt((count - 1) * left_out.var())
    return total / (count * (count - 1)), NORMAL_95 * float(error)
