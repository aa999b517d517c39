r"""Label order: the same test tasks with their classes assigned to the outputs in other orders.

A learner with a head of learned weights starts output k from the same weights whichever class of a task is called k, so
its accuracy depends on the order (Ye and Chao 2022, arXiv 2106.16245). Each task is learned in R orders pi, the first
as drawn, the others different random ones (all N! where R is as large). With a_tr the accuracy of task t in order r:

    apart         the largest change of a probability by the order
    best, worst   mean_t max_r a_tr, mean_t min_r a_tr     spread   root of mean_t var_r a_tr
    ranked        mean_t of the i-th largest a_tr, i = 1 .. R
    ensemble      mean accuracy of the orders' mean probabilities, (1/R) sum_r p_r(pi_r(class) | x)

Best and worst are chosen on the queries they are scored on: they bound what an order can do, and no rule finds the best
one without labels. The ensemble is a rule, at R times the cost. Learners without a head (ProtoNet), or with one of
equal rows (algo.zero_head=true), do not depend on the order. Symbols: T tasks, N ways, R orders, M queries.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarun.analyses.analysis import Cell, Context, Row, require_at_least
from metarun.errors import UserError
from metarun.report.figures.drawing import Drawing, finish, look, panels
from metarun.report.statistics.intervals import t_interval
from metarun.storage.text import axis_label, count_nouns, display_scale, format_metric
from metarun.training.evaluation import EPISODE_SEED, PREDICTION, SCORE, score_tasks
from metarun.types import Batch, Task

SAME = 1e-4
"""Probabilities that differ by less are equal but for rounding."""


@dataclass(frozen=True)
class LabelOrder:
    tasks: int
    orders: int

    def __post_init__(self) -> None:
        require_at_least(self, tasks=2, orders=2)

    def cells(self, context: Context) -> Sequence[Cell]:
        """One cell per task."""
        experiment = context.run.experiment
        if experiment.dataset.kind != "classification" or experiment.tested.loss.metric != "accuracy":
            raise UserError("analysis=label_order: needs tasks with classes, as data=omniglot; these have none")
        return [{"task": i, "orders": self.orders} for i in range(self.tasks)]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        experiment, learner = context.run.experiment, context.run.learner
        spec, index = experiment.test_spec, cell["task"]
        drawn = experiment.dataset.episodes("test", EPISODE_SEED, 0, range(index, index + 1), spec)
        orders = choose_orders(spec.ways, self.orders, index)
        tasks = experiment.placement.move_task(reorder(drawn, orders))
        chunk = experiment.placement.evaluation_chunk(spec, experiment.dataset.input_shape())
        steps = (learner.test_inner_steps,)
        found = score_tasks(learner, context.run.params, tasks, steps, chunk, with_predictions=True)
        scores, probabilities = found[SCORE][:, -1].double(), found[PREDICTION][:, -1].double().softmax(-1)
        back = probabilities.gather(-1, orders[:, None].expand_as(probabilities))  # of each class as drawn
        ensemble = (back.mean(0).argmax(-1) == drawn.query.y[0]).double().mean()
        ends = {"lowest": float(scores.min()), "highest": float(scores.max())}
        mean = {"mean": float(scores.mean()), "sd": float(scores.std()), "ensemble": float(ensemble)}
        return mean | ends | {"apart": float((back - back[0]).abs().max()), "scores": scores.tolist()}

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        scores = np.array([row["scores"] for row in rows])
        ensemble = np.array([row["ensemble"] for row in rows])
        gap, gain = t_interval(scores.max(1) - scores.min(1)), t_interval(ensemble - scores.mean(1))
        summary = {
            "metric": "accuracy",
            "orders": scores.shape[1],
            "apart": max(row["apart"] for row in rows),
            "as_drawn": float(scores[:, 0].mean()),
            "mean": float(scores.mean()),
            "best": float(scores.max(1).mean()),
            "worst": float(scores.min(1).mean()),
            "gap": gap.mean,
            "gap_ci95": gap.half,
            "spread": float(np.sqrt(scores.var(1, ddof=1).mean())),
            "ensemble": float(ensemble.mean()),
            "ensemble_gain": gain.mean,
            "ensemble_gain_ci95": gain.half,
            "ranked": np.sort(scores, 1)[:, ::-1].mean(0).tolist(),
        }
        return summary | {"message": _describe(summary, len(rows))}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        """The mean accuracy of the best, second best, ... order of each task."""
        figure, (axes,) = panels(1, columns=2, height=2.9)
        scale, style, other = display_scale("accuracy"), look(0), look(1)
        ranked = scale * np.array(summary["ranked"])
        axes.plot(
            np.arange(1, len(ranked) + 1), ranked, color=style.colour, marker=style.marker, label="each order alone"
        )
        ensemble = scale * summary["ensemble"]
        axes.axhline(ensemble, color=other.colour, linestyle=other.dash, label="mean of the orders' probabilities")
        axes.legend()
        finish(axes, "Test accuracy by the order of the labels", "rank of the order", axis_label("accuracy"), [ranked])
        return [Drawing("label_order", summary["message"], figure)]


def choose_orders(ways: int, count: int, seed: int) -> Tensor:
    """R different orders [R, N] of N labels, the first as they are: all of them, or random ones."""
    if math.factorial(ways) <= count:
        return torch.tensor(list(itertools.permutations(range(ways))))
    rng, found = np.random.default_rng(seed), {tuple(range(ways)): None}
    while len(found) < count:
        found[tuple(rng.permutation(ways).tolist())] = None
    return torch.tensor(list(found))


def reorder(task: Task, orders: Tensor) -> Task:
    """One task [1, ...] -> R tasks: class k of it has the label orders[r, k] in task r."""
    count = len(orders)
    return Task(*(Batch(part.x.expand(count, *part.x.shape[1:]), orders[:, part.y[0]]) for part in task))


def _describe(summary: dict[str, Any], tasks: int) -> str:
    orders = f"{summary['orders']} orders of the labels of each of {count_nouns(tasks, 'task')}"
    if summary["apart"] < SAME:
        mean = format_metric("accuracy", summary["mean"])
        return f"{orders}: {mean} in every order; no prediction depends on it"
    best, worst, mean, drawn = (format_metric("accuracy", summary[k]) for k in ("best", "worst", "mean", "as_drawn"))
    gap, spread = f"{100 * summary['gap']:.2f} +- {100 * summary['gap_ci95']:.2f} points", 100 * summary["spread"]
    gain = f"{100 * summary['ensemble_gain']:+.2f} +- {100 * summary['ensemble_gain_ci95']:.2f} points"
    ensemble = format_metric("accuracy", summary["ensemble"])
    lines = [
        f"{orders}: {mean} on average ({drawn} as drawn), {best} in the best order of each task, {worst} in the worst",
        f"best minus worst {gap}, standard deviation between orders of a task {spread:.2f} points",
        f"the mean of the orders' probabilities has {ensemble}, {gain} against one order",
    ]
    if summary["ensemble_gain"] > summary["ensemble_gain_ci95"]:
        lines.append("training with algo.zero_head=true makes the order irrelevant (algo=unicorn is MAML so)")
    return "\n".join(lines)
