"""What a run would score without learning anything: the level that alarms compare with.

Classification of N ways   accuracy 1/N, loss log N: a uniform guess; another loss and its metric of equal logits
Regression                 a constant c: (1/M) sum_m |c - y_m|^2 over the M query rows of a task, averaged over the
                           validation tasks; c is the mean of the task's K support targets, or that of all tasks' where
                           its loss is lower: of targets without any pattern, the first has 1 + 1/K times their variance
Control                    the return of a trajectory without a move. The loss is infinite: losses of actor and critics
                           move with their own targets, so there is no level to compare with
Predicted Gaussians        N(c, v) for each task, v the mean of (c - y_k)^2 over the support targets of all tasks
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from metarun.algorithms.losses import CrossEntropy, as_prediction
from metarun.types import Dataset, EpisodeSpec, Loss

if TYPE_CHECKING:
    from metarun.data.control import Environment

LEAST = 0.1
"""Lower bound of the guessed standard deviation: that of a single support target is 0."""


class Chance(NamedTuple):
    score: float  # the metric on validation tasks
    loss: float  # the query loss on training tasks


def chance_level(dataset: Dataset, loss: Loss, train: EpisodeSpec, val: EpisodeSpec, tasks: int, seed: int) -> Chance:
    """The chance level of a data set; `tasks` and `seed` name the validation episodes that regression reads."""
    if dataset.kind == "classification":
        if isinstance(loss, CrossEntropy):
            return Chance(1 / val.ways, math.log(train.ways))
        equal = [(torch.zeros(spec.ways, spec.ways), torch.arange(spec.ways)) for spec in (train, val)]
        return Chance(float(loss.score(*equal[1])), float(loss(*equal[0])))
    if dataset.kind == "control":
        return Chance(cast("Environment", dataset).idle_return(), math.inf)
    episodes = dataset.episodes("val", seed, 0, range(tasks), val)
    support = episodes.support.y.double()
    constants = support.mean(1, keepdim=True), support.mean((0, 1), keepdim=True)
    levels = [_score_constants(loss, support, episodes.query.y, constant) for constant in constants]
    return min(levels, key=lambda level: level.loss)


def _score_constants(loss: Loss, support: Tensor, query: Tensor, constants: Tensor) -> Chance:
    """Of guesses [T, 1, D], or the same for all tasks [1, 1, D], with targets [T, S, D] and [T, M, D]."""
    targets = query.flatten(0, 1).double()
    deviation = (support - constants).square().mean((0, 1)).sqrt().clamp_min(LEAST).expand_as(targets)
    guesses = as_prediction(loss, constants.expand_as(query).flatten(0, 1), deviation)
    return Chance(float(loss.score(guesses, targets)), float(loss(guesses, targets)))
