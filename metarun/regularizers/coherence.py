r"""Coherence of a step's adaptations: Omega(theta) = -mean_i u_i . mean_j u_j = -|ubar|^2.

    d_i = phi_i - theta,  u_i = d_i / |d_i|  (0 where a task does not move),  ubar = mean over the M tasks of u_i
    Omega = -(1/M + (1 - 1/M) c),  c the mean cosine between the directions of two different tasks
    gradient  -(2/M) sum_i (d d_i / d theta)^T (I - u_i u_i^T) ubar / |d_i|

-1 where all tasks move the same way, 0 where their directions cancel, near -1/M where they have nothing in common.
phi_i is the result of `inner_steps` steps of the learner's own inner loop, differentiated through all of them whatever
the learner does for its own meta-gradient: with FOMAML, Reptile and iMAML this penalty costs the memory and the second
derivatives that they are chosen to avoid. A step adapts every task twice more, once for ubar and once for the gradient.
Only directions enter: a task that moves little counts as much as any other, and the gradient grows as 1 / |d_i|; it is
0 for a task that does not move at all.

Guiroy, Verma, Pal 2019 (arXiv 1907.07287) use -u_i . mean_j u_j in another way: each adapted point is moved by
-gamma grad_phi_i of it before its query loss is taken. A meta-gradient here is a function of one task, which cannot see
the directions of the others, so that form is left out; this one is an outer penalty with an exact gradient.
It is a term of the outer objective and needs two tasks a step or more; `tasks` limits it to the first tasks of a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import grad

from metarun.algorithms.inner_loop import descend, last, start
from metarun.compute.linalg import sqrt, sub
from metarun.regularizers.selection import select_tensors
from metarun.regularizers.tasks import attach_gradient, check_count, first_tasks, map_each_task
from metarun.types import Algorithm, Batch, GradientLearner, Metrics, Params, Task


@dataclass(frozen=True)
class Coherence:
    tasks: int | None = None
    targets: tuple[str, ...] | None = None

    allowed_where: ClassVar[tuple[str, ...]] = ("outer",)

    def __post_init__(self) -> None:
        check_count(self.tasks)

    def objection(self, algorithm: Algorithm) -> str | None:
        """Why the algorithm cannot have this penalty, in one line; None if it can."""
        if isinstance(algorithm, GradientLearner):
            return None
        return "this algorithm has no inner loop whose directions could be compared; choose algo=maml or reg=inequality"

    def across(self, learner: Algorithm, params: Params, tasks: Task) -> Tensor:
        assert isinstance(learner, GradientLearner)  # others were refused before the run
        support = first_tasks(tasks, self.tasks).support
        alone = Task(support, Batch(support.x[:, :0], support.y[:, :0]))  # queries do not matter

        def directions(theta: Params, task: Task) -> tuple[Params, Metrics]:
            return {}, {"u": direction(learner, theta, task.support, self.targets)}

        mean_D = map_each_task(directions, params, alone)[1]["u"].mean(0)

        def gradients(theta: Params, task: Task) -> tuple[Params, Metrics]:
            return grad(lambda at: -2 * directions(at, task)[1]["u"] @ mean_D)(theta), {}

        gradient = {k: g.mean(0) for k, g in map_each_task(gradients, params, alone)[0].items()}
        return attach_gradient(-mean_D.square().sum(), gradient, params)


def direction(learner: GradientLearner, theta: Params, support: Batch, targets: tuple[str, ...] | None) -> Tensor:
    """u of one task, [D]: over the tensors whose names begin with one of `targets`, or all of the network's."""
    theta = start(learner, theta, support)
    phi = last(descend(learner.inner_objective(theta, support), theta, learner.inner_rule, learner.inner_steps))
    moved = sub(select_tensors(phi, targets), theta)
    return unit_vector(torch.cat([d.flatten() for d in moved.values()])) if moved else torch.zeros(1)


def unit_vector(d: Tensor) -> Tensor:
    """d / |d|; 0, with the derivative 0, where d is 0."""
    square = d.square().sum()
    nonzero = square > 0
    # Both branches must be finite, since the derivative of the one not taken is multiplied by 0.
    return torch.where(nonzero, d / sqrt(torch.where(nonzero, square, 1.0)), 0.0)
