r"""The outer loss after several inner steps, as MAML++ trains on (Antoniou, Edwards, Storkey 2019, arXiv 1810.09502).

    sum_k w_k [L^Q(phi_k) + penalties],  k = 1 .. T,      sum_k w_k = 1
    annealed over E outer steps, in stages e = 0 .. 9 of E/10 steps:
        w_k = max(1/T - e / (10 T), 0.03/T) for k < T,    w_T = 1 - sum_{k < T} w_k;    after E: w_T = 1 alone

First order: the support gradients g_k are constants, phi_{k+1} = phi_k - rate_k(theta) g_k, so that the rates have
their exact gradient and theta that of each loss at its phi_k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from metarun.algorithms import common
from metarun.algorithms.inner_loop import descend, last
from metarun.compute.linalg import dot, sum_scalars
from metarun.errors import require
from metarun.types import Batch, Metrics, Objective, Params, Task, UpdateRule

STAGES = 10
LEAST = 0.03
"""Of 1/T, what the weight of an earlier step falls to before it goes."""


class Stage(NamedTuple):
    """What holds at an outer step."""

    first_order: bool
    weights: tuple[float, ...] | None  # None: no annealing, or it is over


def check(weights: Sequence[float] | None, steps: int, multi_step_until: int, first_order_until: int) -> None:
    require(multi_step_until >= 0, "multi_step_until", multi_step_until, "must be at least 0 outer steps")
    require(first_order_until >= 0, "first_order_until", first_order_until, "must be at least 0 outer steps")
    if weights is None:
        return
    needed = f"must be one finite number of at least 0 for each of the {steps} inner steps, the last above 0"
    sound = len(weights) == steps and all(math.isfinite(w) and w >= 0 for w in weights) and weights[-1] > 0
    require(sound, "step_weights", list(weights), needed)
    require(not multi_step_until, "step_weights", list(weights), "goes without multi_step_until, which sets them")


def annealed(step: int, until: int, steps: int) -> tuple[float, ...] | None:
    """The weights at an outer step, None from step `until` on."""
    if step >= until:
        return None
    earlier = max((1 - STAGES * step // until / STAGES) / steps, LEAST / steps)
    return (*[earlier] * (steps - 1), 1 - earlier * (steps - 1))


def meta_grad(learner: Any, params: Params, task: Task) -> tuple[Params, Metrics]:
    """The gradient of the weighted losses; metrics are those after the last step."""
    constant = recorded(learner, params, task.support) if learner.first_order else None
    weights = learner.step_weights or (*[0.0] * (learner.inner_steps - 1), 1.0)

    def outer(theta: Params) -> tuple[Tensor, Metrics]:
        objective = constant or learner.inner_objective(theta, task.support)
        states = [*descend(objective, theta, learner.inner_rule, learner.inner_steps)][1:]
        found = [common.outer_objective(learner, theta, phi, task) for w, phi in zip(weights, states, strict=True) if w]
        weighted = sum_scalars(w * loss for w, (loss, _) in zip([w for w in weights if w], found, strict=True))
        return weighted, found[-1][1] | {"distance": common.distance(states[-1], theta)}

    return common.gradient(outer, params)


def recorded(learner: Any, theta: Params, support: Batch) -> Objective:
    """An objective whose gradient at step k is the one that the inner loop met there, wherever it is asked."""
    met: list[Params] = []
    rule: UpdateRule = learner.inner_rule

    def step(g: Params, state: Any) -> tuple[Params, Any]:
        met.append(g)
        return rule.step(g, state)

    objective = learner.inner_objective(theta, support)
    last(descend(objective, theta, rule._replace(step=step), learner.inner_steps))
    return lambda phi, k: dot(met[k], phi)
