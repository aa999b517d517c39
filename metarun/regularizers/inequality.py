r"""Inequality of a step's tasks (TAML): Omega(theta) = I(l_1 .. l_M), an index of how unequal their losses are.

    l_i    the loss of task i before adaptation: L_i(theta) on the query set, or with `rows=support` on the support
           set. For a learner without an inner loop it is the loss that its meta-gradient differentiates
    r_i    l_i / lbar, lbar the mean over the M tasks;  mean r = 1

    theil                 T = mean r ln r  in [0, ln M]
    generalized_entropy   GE(a) = (mean r^a - 1) / (a (a - 1)), a `alpha`;  GE(1) = T,  GE(0) = -mean ln r
    atkinson              A(e) = 1 - (mean r^(1-e))^(1/(1-e)), e `epsilon`;  A(1) = 1 - exp mean ln r  in [0, 1]
    gini                  G = sum_ij |l_i - l_j| / (2 M^2 lbar), half the relative mean difference  in [0, 1 - 1/M]
    variance_of_logs      mean (ln l - mean ln l)^2

All are 0 for equal losses, blind to the order of the tasks and to a common factor of the losses: raising the low losses
lowers them as well as lowering the high ones. The gradient is exact, sum_i (dI/dl_i) grad l_i; |.| has the derivative
0 at 0. Losses below 1e-8 count as 1e-8, so that logarithms stay finite. GE(2) is half the squared coefficient of
variation.

It is a term of the outer objective and needs two tasks a step or more: one task alone has Omega = 0. It costs one more
gradient of every task; `tasks` limits it to the first tasks of a step. Source: Jamal, Qi 2019, arXiv 1805.07722 (TAML,
inequality minimisation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import grad_and_value

from metarun.errors import require
from metarun.regularizers.rows import check_rows
from metarun.regularizers.tasks import attach_gradient, check_count, first_tasks, map_each_task
from metarun.types import Algorithm, GradientLearner, Metrics, Params, Task

MEASURES = ("theil", "generalized_entropy", "atkinson", "gini", "variance_of_logs")
LEAST_LOSS = 1e-8


@dataclass(frozen=True)
class Inequality:
    measure: str = "theil"
    alpha: float = 2.0
    epsilon: float = 0.5
    rows: str = "query"
    tasks: int | None = None

    allowed_where: ClassVar[tuple[str, ...]] = ("outer",)

    def __post_init__(self) -> None:
        require(self.measure in MEASURES, "measure", self.measure, "choices: " + ", ".join(MEASURES))
        require(self.epsilon > 0, "epsilon", self.epsilon, "must be above 0 (0 gives no weight to any inequality)")
        check_rows(self.rows)
        check_count(self.tasks)

    def across(self, learner: Algorithm, params: Params, tasks: Task) -> Tensor:
        grads, loss_T = task_losses(learner, params, first_tasks(tasks, self.tasks), self.rows)
        slope_T, omega = grad_and_value(self.index)(loss_T)
        return attach_gradient(omega, {k: torch.tensordot(slope_T, g, 1) for k, g in grads.items()}, params)

    def index(self, loss_T: Tensor) -> Tensor:
        """I of the losses."""
        loss_T = loss_T.clamp_min(LEAST_LOSS)
        if self.measure == "generalized_entropy":
            return generalized_entropy(loss_T, self.alpha)
        if self.measure == "atkinson":
            return atkinson(loss_T, self.epsilon)
        return {"theil": theil, "gini": gini, "variance_of_logs": variance_of_logs}[self.measure](loss_T)


def task_losses(learner: Algorithm, params: Params, tasks: Task, rows: str) -> tuple[Params, Tensor]:
    """Each task's loss before adaptation, [T], and its gradient, [T, ...]."""

    def loss_before_adaptation(theta: Params, task: Task) -> tuple[Params, Metrics]:
        def loss(theta: Params) -> Tensor:
            start = next(iter(learner.adaptations(theta, task.support, 0)))
            return learner.loss(learner.predict(start, task.query.x), task.query.y)

        gradient, value = grad_and_value(loss)(theta)
        return gradient, {"loss": value}

    tasks = tasks._replace(query=tasks.support) if rows == "support" else tasks
    # Without an inner loop the meta-gradient is that of the loss; support and queries may share batch statistics in it.
    function = loss_before_adaptation if isinstance(learner, GradientLearner) else learner.meta_grad
    grads, metrics = map_each_task(function, params, tasks)
    return grads, metrics["loss"]


def theil(loss_T: Tensor) -> Tensor:
    """mean r ln r."""
    r_T = loss_T / loss_T.mean()
    return (r_T * r_T.log()).mean()


def generalized_entropy(loss_T: Tensor, alpha: float) -> Tensor:
    """(mean r^a - 1) / (a (a - 1)), and its limits at 0 and 1."""
    if alpha == 1:
        return theil(loss_T)
    log_r_T = (loss_T / loss_T.mean()).log()
    if alpha == 0:
        return -log_r_T.mean()
    return torch.expm1(alpha * log_r_T).mean() / (alpha * (alpha - 1))


def atkinson(loss_T: Tensor, epsilon: float) -> Tensor:
    """1 - (mean r^(1-e))^(1/(1-e)), by logarithms so that no power overflows."""
    log_r_T = (loss_T / loss_T.mean()).log()
    if epsilon == 1:
        return -torch.expm1(log_r_T.mean())
    power = 1 - epsilon
    log_mean = torch.logsumexp(power * log_r_T, 0) - math.log(len(loss_T))
    return -torch.expm1(log_mean / power)


def gini(loss_T: Tensor) -> Tensor:
    """sum_ij |l_i - l_j| / (2 M^2 lbar)."""
    return (loss_T[:, None] - loss_T[None]).abs().mean() / (2 * loss_T.mean())


def variance_of_logs(loss_T: Tensor) -> Tensor:
    """mean (ln l - mean ln l)^2."""
    return loss_T.log().var(correction=0)
