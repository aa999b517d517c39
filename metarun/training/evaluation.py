"""Scores on fixed episodes: the mean over tasks and its 95 % interval after every adaptation step.

A learner that predicts distributions or acts is scored by its own best estimate (`assess`), and says more beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.compute.device import Placement
from metarun.compute.distributed import ALONE, Team
from metarun.compute.task_axis import map_tasks
from metarun.types import (
    Adapted,
    Algorithm,
    AssessingLearner,
    Dataset,
    EpisodeSpec,
    ExploringLearner,
    Metrics,
    Model,
    Params,
    Split,
    Task,
)

EPISODE_SEED = 0
"""Validation and test episodes do not depend on the run's seed, so that runs are compared on the same tasks."""

LOSS, SCORE = "loss", "score"
TASKS_PER_DRAW = 50
REFERENCE_INPUTS = 512
"""Training images that population statistics are measured on."""


@dataclass(frozen=True)
class Evaluator:
    """Fixed episodes of one split, and how a learner is scored on them."""

    dataset: Dataset
    split: Split
    spec: EpisodeSpec
    tasks: int
    steps: tuple[int, ...]  # adaptation steps to report, ascending
    placement: Placement

    def __call__(self, algorithm: Algorithm, params: Params) -> Evaluation:
        reference = self.placement.inputs(self.dataset.reference_inputs(REFERENCE_INPUTS))
        calibrated = replace_model(algorithm, algorithm.model.calibrate(params, reference))
        chunk = self.placement.evaluation_chunk(self.spec, self.dataset.input_shape())
        digest, parts = hashlib.sha256(), []
        for start in range(0, self.tasks, TASKS_PER_DRAW):
            indices = range(start, min(start + TASKS_PER_DRAW, self.tasks))
            drawn = self.dataset.episodes(self.split, EPISODE_SEED, 0, indices, self.spec)
            _update(digest, drawn)
            placed = self.placement.task(drawn)
            parts.append(score_tasks(calibrated, params, placed, self.steps, chunk, self.placement.team))
        found = {name: torch.cat([part[name] for part in parts]).T for name in parts[0]}
        losses, scores = found.pop(LOSS), found.pop(SCORE)
        steps = self.steps[: len(scores)]  # a learner without steps reports one state
        headline = steps.index(min(algorithm.test_inner_steps, steps[-1]))
        loss, beside = algorithm.loss, {name: values[headline] for name, values in found.items()}
        hashed = digest.hexdigest()
        return Evaluation(steps, losses, scores, headline, loss.higher_is_better, hashed, loss.best, beside)

    def oracle(self) -> Metrics:
        """What the best possible predictor scores on these tasks [T], where the data set knows; else nothing."""
        known = getattr(self.dataset, "oracle", None)
        return known(self.split, EPISODE_SEED, 0, range(self.tasks), self.spec) if known else {}


class Evaluation(NamedTuple):
    """The result of an evaluator; rows are the reported adaptation steps, columns tasks."""

    steps: tuple[int, ...]
    losses: Tensor
    scores: Tensor
    headline: int  # the row whose figure is the result
    higher_is_better: bool
    episodes_sha256: str
    best: float = 1.0  # of a figure of which more is better: what its error counts from
    beside: Mapping[str, Tensor] = {}  # further figures of each task, at the row of the result

    @property
    def mean(self) -> float:
        return mean_and_interval(self.scores[self.headline])[0]

    @property
    def ci95(self) -> float:
        return mean_and_interval(self.scores[self.headline])[1]

    @property
    def error(self) -> float:
        """Lower is better: the mean itself for an error measure, 1 - mean for an accuracy, -mean of a likelihood."""
        return self.best - self.mean if self.higher_is_better else self.mean

    def curve(self) -> list[dict[str, Any]]:
        """Mean and interval of the reported figure, and the mean loss, after every step."""
        rows = []
        for step, scores, losses in zip(self.steps, self.scores, self.losses, strict=True):
            mean, ci95 = mean_and_interval(scores)
            rows.append({"step": step, "mean": mean, "ci95": ci95, "loss": float(losses.double().mean())})
        return rows


def mean_and_interval(values: Tensor) -> tuple[float, float]:
    """Mean over tasks and 1.96 sd / sqrt(n), the half-width that the field prints (sd with n - 1)."""
    values = values.double()
    spread = float(values.std()) if len(values) > 1 else math.nan
    return float(values.mean()), 1.96 * spread / math.sqrt(len(values))


def adaptation_curves(
    algorithm: Algorithm, params: Params, tasks: Task, steps: Sequence[int], chunk: int | None, team: Team = ALONE
) -> tuple[Tensor, Tensor]:
    """Query losses and scores of each task [T, R] after the R adaptation steps named ([T, 1] for a learner without)."""
    found = score_tasks(algorithm, params, tasks, steps, chunk, team)
    return found[LOSS], found[SCORE]


def score_tasks(
    algorithm: Algorithm, params: Params, tasks: Task, steps: Sequence[int], chunk: int | None, team: Team = ALONE
) -> Metrics:
    """The same by name, with what a learner of distributions says besides."""

    def one(params: Params, task: Task) -> tuple[Metrics, Metrics]:
        states = enumerate(states_of(algorithm, params, task, max(steps)))
        rows = [figures(algorithm, adapted, task) for step, adapted in states if step in steps]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}, {}

    with torch.no_grad():
        found, _ = map_tasks(one, len(tasks.support.x), chunk, team=team)(params, tasks)
    return {name: values.cpu() for name, values in found.items()}


def states_of(algorithm: Algorithm, params: Params, task: Task, steps: int) -> Iterator[Adapted]:
    """What is adapted to the support set, or to what the learner itself explores of the task."""
    if isinstance(algorithm, ExploringLearner):
        return algorithm.explore_steps(params, task.support, steps)
    return algorithm.adaptations(params, task.support, steps)


def figures(algorithm: Algorithm, adapted: Adapted, task: Task) -> Metrics:
    """Loss and score on the queries of one task, and the learner's own figures under their own names."""
    if isinstance(algorithm, AssessingLearner):
        found = dict(algorithm.assess(adapted, task))
        return {LOSS: found.pop("loss"), SCORE: found.pop(algorithm.loss.metric), **found}
    prediction = algorithm.predict(adapted, task.query.x)
    return {
        LOSS: algorithm.loss(prediction, task.query.y),
        SCORE: algorithm.loss.score(prediction, task.query.y),
    }


def replace_model(algorithm: Any, model: Model) -> Algorithm:
    """The same learner with another network, as one whose statistics are fixed."""
    return algorithm if model is algorithm.model else dataclasses.replace(algorithm, model=model)


def _update(digest: Any, tasks: Task) -> None:
    """Task by task, so that the hash does not depend on how many are drawn at once."""
    for parts in zip(*tasks.support, *tasks.query, strict=True):
        for tensor in parts:
            digest.update(tensor.contiguous().numpy().tobytes())
