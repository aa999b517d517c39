r"""Measures of trained runs: the change when one training task is replaced, the generalisation gap, the curvature.

    S, S^(i)       a pool of n tasks, and the same with task i replaced (train.pool, train.pool_replaced)
    A(S)           the weights after the last outer step; not the best validated ones, for choosing is a step of its own
    l(theta, z)    query loss of task z after `test_inner_steps` adaptation steps from theta
    change         of one test task z: |l(A(S), z) - l(A(S^(i)), z)|; `sup`, `mean` and `median` over M fixed test tasks
    distance       |A(S) - A(S^(i))|, and `relative` to |A(S)|
    gap            (1/M) sum_z l(A(S), z) - (1/n) sum_{z in S} l(A(S), z),   half = 1.96 sd / sqrt(M)

Uniform stability beta is the supremum of the change over all S, i and z, and bounds the expected gap: a `sup` over M
tasks and a few i is a lower bound of beta and no estimate of it. The half-width of the gap is that of new tasks alone:
the mean over S is over all of S. Losses are in the unit of the loss (squared error, nats).

Sources: Maurer 2005, Algorithmic stability and meta-learning, JMLR 6; Chen et al. 2020, A closer look at the training
strategy for modern meta-learning, NeurIPS; Fallah et al. 2021, arXiv 2102.03832; Wang and Arora 2024, On the stability
and generalization of meta-learning, NeurIPS.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.analyses.analysis import TrainedRun
from metarun.compute.linalg import norm, sub
from metarun.data.pool import TaskPool
from metarun.diagnostics.curvature import curvature_measures
from metarun.training import checkpoint
from metarun.training.evaluation import adaptation_curves, calibrate, mean_and_interval
from metarun.training.experiment import Experiment
from metarun.types import GradientLearner, Params


class Outcome(NamedTuple):
    """The last weights of a run, and the losses and scores of tasks after adaptation from them."""

    params: Params
    new: Tensor  # losses of the fixed test tasks [M]
    new_scores: Tensor  # [M]
    own: Tensor | None  # losses of the pool's tasks [n]; None if the run has no pool
    own_scores: Tensor | None  # [n]


def evaluate_last_weights(experiment: Experiment, run: TrainedRun, tasks: int) -> Outcome | None:
    """The outcome of a run on `tasks` test tasks; None if it diverged."""
    if run.diverged:
        return None
    params = experiment.initial_params()
    checkpoint.restore_params(run.folder.last, params)
    steps = (experiment.tested.test_inner_steps,)
    found = experiment.evaluator("test", tasks, steps)(experiment.tested, experiment.fit_head(params))
    new = found.losses[-1].double(), found.scores[-1].double()
    pool, placement, spec = experiment.dataset, experiment.placement, experiment.train_spec
    if not isinstance(pool, TaskPool):
        return Outcome(params, *new, None, None)
    learner = calibrate(experiment.algorithm, params, pool, placement)  # adapts to the pool's tasks as at test
    chunk = placement.evaluation_chunk(spec, pool.input_shape())
    own = placement.move_task(pool.tasks(spec))
    losses, scores = adaptation_curves(learner, params, own, (learner.test_inner_steps,), chunk)
    return Outcome(params, *new, losses[:, -1].double(), scores[:, -1].double())


def same_episode_size(experiment: Experiment) -> bool:
    """Whether training and test episodes have the same ways and shots, so that their losses can be compared."""
    train, test = experiment.train_spec, experiment.test_spec
    return (train.ways, train.shots) == (test.ways, test.shots)


def generalisation_gap(experiment: Experiment, outcome: Outcome) -> dict[str, float | None]:
    """Mean loss on new tasks, on the pool's own, and their difference with its half-width."""
    new, half = mean_and_interval(outcome.new)
    if outcome.own is None or not same_episode_size(experiment):
        return {"new_loss": new, "own_loss": None, "gap": None, "gap_half": None}
    own = float(outcome.own.mean())
    return {"new_loss": new, "own_loss": own, "gap": new - own, "gap_half": half}


def compare_outcomes(a: Outcome | None, b: Outcome | None) -> dict[str, float]:
    """The distance of two runs, in weights and in the losses of the same test tasks; NaN if one diverged."""
    if a is None or b is None:
        return dict.fromkeys(("distance", "relative", "mean", "sup", "median"), math.nan)
    distance = float(norm(sub(a.params, b.params)))
    losses = (a.new - b.new).abs()
    changes = {"mean": float(losses.mean()), "sup": float(losses.max()), "median": float(torch.median(losses))}
    return {"distance": distance, "relative": distance / max(float(norm(a.params)), 1e-30), **changes}


def measure_rate_curvature(experiment: Experiment, run: TrainedRun) -> dict[str, float | None]:
    """inner_lr times the largest eigenvalue of the inner objective at the last good weights, on the probe tasks: mean
    and worst (metarun/diagnostics/curvature.py); None without such weights, or if steps are no plain descent."""
    learner, found = experiment.algorithm, {}
    if run.folder.last.exists() and isinstance(learner, GradientLearner):
        params = experiment.initial_params()
        checkpoint.restore_params(run.folder.last, params)
        probe = experiment.probe()
        found = curvature_measures(learner, params, probe.tasks, probe.settings.lanczos_steps)
    return {name: found.get(name) for name in ("rate_curvature", "rate_curvature_max")}


def read_last_record(run: TrainedRun, names: tuple[str, ...]) -> dict[str, Any]:
    """These metrics of the run's last training record; None for those that it does not have."""
    records = [r for r in run.folder.read_records() if r["kind"] == "train"]
    return {name: records[-1].get(name) if records else None for name in names}


def choose_replaced(count: int, size: int) -> list[int]:
    """The numbers of `count` tasks, evenly spread through a pool of `size`."""
    return sorted({i * size // count for i in range(count)})
