r"""The Bayes gap: does a learner predict as if only its training tasks existed, or for all tasks?

Training tasks have one of N coefficient vectors (data.train_vectors), new tasks a vector of their own. Both
distributions have a best predictor, the posterior mean of the targets given the support set:

    f_pool   sum_i p_i w_i . x,  p_i the posterior probability of vector i          E_train[y | x, support]
    f_prior  the same under the distribution of new tasks                           E_test[y | x, support]
    distance of f to g = mean over the queries of (f(x) - g(x))^2                   in units of y^2, as the MSE

A learner of few vectors comes near f_pool, one of many near f_prior: on new tasks its excess MSE over the best
predictor is its expected distance to f_prior. `between` is the distance of f_pool to f_prior, which goes to 0 as N
grows. The *threshold* is the N where both distances on new tasks are equal, interpolated between the log N where the
nearer one changes. It is taken over the N where f is nearer to one of the two than they are to each other: elsewhere
the learner's own error hides which one it follows. `difference` is the distance to f_pool less that to f_prior, task by
task, so that its interval says whether the nearer one is certain.

Raventos, Paul, Chen, Ganguli 2023, Pretraining task diversity and the emergence of non-Bayesian in-context learning
for regression, arXiv 2306.15063, for transformers. Predictions are those of the last weights: choosing a checkpoint by
its validation on new tasks would favour f_prior. Intervals are over tasks, 95 %.
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

from metarun.analyses.analysis import Cell, Context, Row, SourceRun, require_at_least
from metarun.analyses.figures import finish_sizes, format_number
from metarun.errors import UserError, require
from metarun.report.figures.drawing import COLOURS, DASHES, MARKERS, Drawing, panels
from metarun.storage.text import count_nouns
from metarun.training import checkpoint
from metarun.training.evaluation import EPISODE_SEED, PREDICTION, TASKS_PER_DRAW, mean_and_interval, score_tasks
from metarun.types import DatasetOptions, Split, optional

DISTANCES = {
    "to_pool": "learner to the posterior mean of its vectors",
    "to_prior": "learner to the posterior mean of all tasks",
    "between": "between the two posterior means",
}
TASKS: dict[str, Split] = {"new": "test", "own": "train"}
UNLIMITED = 4
"""Times the largest number of vectors: where the figure has the learner that never meets one twice."""


@dataclass(frozen=True)
class BayesGap:
    vectors: tuple[int | None, ...] | None
    tasks: int

    def __post_init__(self) -> None:
        require_at_least(self, tasks=2)
        if self.vectors is not None:
            sound = bool(self.vectors) and len({*self.vectors}) == len(self.vectors)
            sound = sound and all(n is None or n >= 1 for n in self.vectors)
            expected = "must be different whole numbers of at least 1, or null for a new vector in each task"
            require(sound, "vectors", list(self.vectors), expected)

    def cells(self, context: Context) -> Sequence[Cell]:
        """One cell for each number of vectors; without a list, that of the run."""
        dataset = context.assemble().dataset
        if optional(dataset, DatasetOptions, "posterior_mean") is None:
            raise UserError("analysis=bayes_gap: the posterior mean of these data is not known; choices: data=linear")
        pool = context.config.train.pool
        require(pool is None, "train.pool", pool, "must be null: it repeats rows too; set data.train_vectors")
        given = self.vectors is not None or context.source is not None
        require(given, "analysis.vectors", None, "must be numbers to train with, as [1, 4, 16, null], or give run=")
        if self.vectors is None:
            return [{"vectors": context.run.experiment.config.data.get("train_vectors")}]
        return [{"vectors": n} for n in self.vectors]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        if self.vectors is None:
            experiment, folder = context.run.experiment, context.source
        else:
            changes = {"data.train_vectors": cell["vectors"]}
            run = context.train(f"vectors-{cell['vectors'] or 'all'}", changes)
            if run.diverged:
                return {"diverged": True}
            experiment, folder = context.assemble(changes), run.folder
        assert folder is not None
        params = experiment.initial_params()
        checkpoint.restore_params(folder.last, params)
        return {"diverged": False} | measure_distances(SourceRun(experiment, params), self.tasks)

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        """The threshold, if there is one, and what it lies between."""
        lines = [_describe(row) for row in rows]
        found = find_threshold(rows)
        if found:
            low, high, middle = found
            lines.append(
                f"threshold: nearer to that of all tasks from {middle:.3g} vectors on, between {low} and {high}"
            )
        elif self.vectors is not None:
            lines.append("no threshold: the nearer of the two does not change where the learner is near enough to tell")
        return {"threshold": found and found[2], "tasks": self.tasks, "message": "\n".join(lines)}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        """Left new tasks, right tasks of the training vectors; unlimited vectors on the far right."""
        ordered = sorted(rows, key=lambda row: row["vectors"] or math.inf)
        numbers = [row["vectors"] for row in ordered]
        last = UNLIMITED * max((n for n in numbers if n), default=1)
        places = [n or last for n in numbers]
        drawn, both = panels(2, columns=2, height=3.0)
        titles = "New tasks", "Tasks of the training vectors"
        for axes, which, title in zip(both, TASKS, titles, strict=True):
            shown: list[float] = []
            for i, (name, label) in enumerate(DISTANCES.items()):
                keys = f"{which}_{name}", f"half_{which}_{name}"
                mean, half = np.array([[row.get(key) for key in keys] for row in ordered], dtype=float).T
                mean[mean == 0] = np.nan  # between two equal means: it has no logarithm
                look: dict[str, Any] = {"color": COLOURS[i], "linestyle": DASHES[i], "marker": MARKERS[i]}
                axes.errorbar(places, mean, yerr=half, capsize=2, label=label, **look)
                shown.extend(mean)
            finish_sizes(axes, title, "training vectors N", "mean squared distance", places, np.array(shown))
            axes.set_xticks(places, ["unlimited" if n is None else str(n) for n in numbers])
            axes.legend()
        values = " ".join(_describe(row) + "." for row in ordered)
        return [Drawing("bayes_gap", f"Distances of predictions to two posterior means. {values}", drawn)]


def measure_distances(run: SourceRun, tasks: int) -> dict[str, float]:
    """Mean distances on new tasks (`new_...`) and on tasks of the training vectors (`own_...`), their difference, the
    mean squared errors of the learner and of both posterior means on new tasks, and half of each interval (`half_...`).
    """
    found: dict[str, float] = {}
    for which, split in TASKS.items():
        values = _distances_of_tasks(run, split, tasks)
        values["difference"] = values["to_pool"] - values["to_prior"]
        names = values if which == "new" else (*DISTANCES, "difference")
        for name in names:
            found[f"{which}_{name}"], found[f"half_{which}_{name}"] = mean_and_interval(values[name])
    return found


def _distances_of_tasks(run: SourceRun, split: Split, tasks: int) -> dict[str, Tensor]:
    """Each [T]."""
    experiment, learner, spec = run.experiment, run.learner, run.experiment.test_spec
    placement = experiment.placement
    dataset = optional(experiment.dataset, DatasetOptions, "largest") or experiment.dataset  # all of the test's shots
    posterior_mean: Any = optional(dataset, DatasetOptions, "posterior_mean")
    chunk = placement.evaluation_chunk(spec, dataset.input_shape())
    parts = []
    for start in range(0, tasks, TASKS_PER_DRAW):
        numbers = range(start, min(start + TASKS_PER_DRAW, tasks))
        drawn = dataset.episodes(split, EPISODE_SEED, 0, numbers, spec)
        y = drawn.query.y.double()
        steps = (learner.test_inner_steps,)
        scores = score_tasks(learner, run.params, placement.move_task(drawn), steps, chunk, with_predictions=True)
        learned = scores[PREDICTION][:, -1, :, : y.shape[-1]].double()  # of a Gaussian, its mean
        pool, prior = (posterior_mean(by, drawn) for by in ("train", "test"))
        pairs = {"to_pool": (learned, pool), "to_prior": (learned, prior), "between": (pool, prior)}
        pairs |= {"mse": (learned, y), "mse_pool": (pool, y), "mse_prior": (prior, y)}
        parts.append({name: (f - g).square().mean((1, 2)) for name, (f, g) in pairs.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def find_threshold(rows: Sequence[Row]) -> tuple[int, int, float] | None:
    """The numbers of vectors between which the learner's predictions on new tasks first become nearer to the posterior
    mean of all tasks, and N between them, where log N is linear in the log ratio of the distances; None if nowhere."""
    points = []
    for row in sorted(rows, key=lambda row: row["vectors"] or math.inf):
        pool, prior, between = (row.get(f"new_{name}") for name in DISTANCES)
        if pool and prior and between and min(pool, prior) < between:  # 0 or None: unlimited, equal or not known
            points.append((row["vectors"], math.log(pool / prior)))
    for (low, before), (high, after) in itertools.pairwise(points):
        if before < 0 <= after:
            share = before / (before - after)
            return low, high, low ** (1 - share) * high**share
    return None


def _describe(row: Row) -> str:
    what = "unlimited vectors" if row["vectors"] is None else count_nouns(row["vectors"], "vector")
    names = ("new_to_pool", "new_to_prior", "new_between", "new_difference", "half_new_difference")
    pool, prior, between, difference, half = (format_number(row.get(name)) for name in names)
    return (
        f"{what}: predictions on new tasks are {pool} from the posterior mean of the training vectors, {prior} from "
        f"that of all tasks (difference {difference} +- {half}); these are {between} apart"
    )
