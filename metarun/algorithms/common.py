"""Shared by several algorithms: fast weights, losses as functions of parameters, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from metarun.algorithms.inner_loop import descend, last
from metarun.algorithms.objective import Entry, Regularization
from metarun.algorithms.penalty_protocols import Adaptation
from metarun.compute.linalg import gradients, norm, sub, sum_scalars
from metarun.errors import require
from metarun.types import Algorithm, Batch, GradientLearner, Loss, Metrics, Model, Objective, Params, Task, UpdateRule


class FastWeights(NamedTuple):
    """Adapted network weights, and the statistics its queries are normalised with (None: their own)."""

    params: Params
    stats: Any


def fast_weights(model: Model, phi: Params, support: Batch) -> FastWeights:
    return FastWeights(phi, model.query_stats(phi, support.x))


def adapt(learner: GradientLearner, theta: Params, support: Batch) -> FastWeights:
    """The end of the inner loop as in training."""
    phis = descend(learner.inner_objective(theta, support), theta, learner.inner_rule, learner.inner_steps)
    return fast_weights(learner.model, last(phis), support)


def adaptations(learner: GradientLearner, theta: Params, support: Batch, steps: int) -> Iterator[FastWeights]:
    """phi_0 = theta, phi_1, ... phi_steps of the inner loop."""
    for phi in descend(learner.inner_objective(theta, support), theta, learner.inner_rule, steps):
        yield fast_weights(learner.model, phi, support)


def add_inner_penalties(learner: GradientLearner, theta: Params, support: Batch, objective: Objective) -> Objective:
    """The objective, and the inner penalties on the whole support set if there are any."""
    if not learner.regularization.select(Entry.INNER_LOSS):
        return objective

    def total(phi: Params, step: int) -> Tensor:
        at = Adaptation(theta, phi, support, None, learner.model, learner.loss, {}, learner.inner_rule.adapted)
        return objective(phi, step) + learner.regularization.inner_penalty(at)

    return total


def add_proximal_step(rule: UpdateRule, regularization: Regularization) -> UpdateRule:
    """The rule, followed by the inner proximal steps if there are any."""
    return rule._replace(proximal_step=regularization.shrink_inner) if regularization.select(Entry.INNER_STEP) else rule


def bind_loss(model: Model, loss: Loss, batch: Batch) -> Objective:
    """phi -> mean loss of the batch; the step number of a descent is of no account."""

    def objective(phi: Params, step: int = 0) -> Tensor:
        return loss(model.apply(phi, batch.x), batch.y)

    return objective


def score_prediction(algorithm: Algorithm, prediction: Tensor, y: Tensor) -> tuple[Tensor, Metrics]:
    """The loss to differentiate, and the metrics that go with it."""
    loss = algorithm.loss(prediction, y)
    return loss, {"loss": loss, algorithm.loss.metric: algorithm.loss.score(prediction, y)}


def differentiate(outer: Callable[[Params], tuple[Tensor, Metrics]], at: Params) -> tuple[Params, Metrics]:
    """Gradient and metrics of theta -> (loss, metrics)."""
    (grads,), metrics = gradients(outer, at)
    return grads, metrics


def outer_objective(learner: GradientLearner, theta: Params, phi: Params, task: Task) -> tuple[Tensor, Metrics]:
    """L^Q(phi) plus the task's outer penalties Omega(theta, phi), and the metrics that go with it."""
    adapted = fast_weights(learner.model, phi, task.support)
    loss, metrics = score_prediction(learner, learner.predict(adapted, task.query.x), task.query.y)
    if not learner.regularization.select(Entry.TASK_LOSS):
        return loss, metrics
    penalty = outer_penalty(learner, theta, phi, task)
    return loss + penalty, metrics | {"penalty": penalty}


def outer_penalty(learner: GradientLearner, theta: Params, phi: Params, task: Task) -> Tensor:
    """The weighted penalties on one task's adaptation in the outer objective."""
    at = Adaptation(theta, phi, *task, learner.model, learner.loss, {}, learner.inner_rule.adapted)
    return sum_scalars([t.evaluate(at) for t in learner.regularization.select(Entry.TASK_LOSS)])


def outer_gradients(learner: GradientLearner, theta: Params, phi: Params, task: Task) -> tuple[Params, Params, Metrics]:
    """dL/dtheta and dL/dphi of the outer objective L(theta, phi), as if neither depended on the other; its metrics."""

    def outer(theta: Params, phi: Params) -> tuple[Tensor, Metrics]:
        return outer_objective(learner, theta, phi, task)

    (by_theta, by_phi), metrics = gradients(outer, theta, phi)
    return by_theta, by_phi, metrics | {"distance": distance(phi, theta)}


def distance(phi: Params, theta: Params) -> Tensor:
    """|phi - theta|, how far adaptation moved."""
    return norm(sub(phi, theta))


def check_inner_loop(
    inner_lr: float, inner_steps: int, test_inner_steps: int, adapted: tuple[str, ...] | None = None
) -> None:
    """The ranges that every algorithm with an inner loop shares."""
    require(inner_lr > 0, "inner_lr", inner_lr, "must be above 0 (a step size on the mean support loss)")
    require(inner_steps >= 1, "inner_steps", inner_steps, "must be at least 1")
    require(test_inner_steps >= 0, "test_inner_steps", test_inner_steps, "must be at least 0")
    require(adapted is None or len(adapted) > 0, "adapted", [], "names nothing; null adapts everything")
