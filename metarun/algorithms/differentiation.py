r"""How the meta-gradient of one task goes through the inner loop, apart from the learner whose inner loop it is.

    phi_0 = theta;   phi_{k+1} = F_k(theta, phi_k),   k = 0 .. T-1
    L(theta, phi) = L^Q(phi) + outer penalties;   meta-gradient  g = d/dtheta L(theta, phi_T(theta))

F_k is one step of the learner's rule on its inner objective, which may depend on theta directly (penalties do). Each
class below is one way to take g, or to approximate it. `metrics` are those of L at phi_T, and |phi_T - theta|.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.func import vjp

from metarun.algorithms import inner_loop
from metarun.algorithms.inner_loop import descend, last, split_adapted
from metarun.compute import linalg
from metarun.compute.linalg import axpy, dot, scale, sum_scalars
from metarun.errors import UserError, require
from metarun.types import Batch, GradientLearner, Metrics, Objective, Params, Task, UpdateRule


class Differentiation(Protocol):
    """A way to differentiate the outer objective of one task by theta."""

    def meta_grad(self, learner: GradientLearner, params: Params, task: Task) -> tuple[Params, Metrics]:
        """The meta-gradient of one task, and its metrics."""


@dataclass(frozen=True)
class Unrolled:
    """g by the graph of all T steps. Memory grows with T."""

    def meta_grad(self, learner: GradientLearner, params: Params, task: Task) -> tuple[Params, Metrics]:
        def outer(theta: Params) -> tuple[Tensor, Metrics]:
            phi = learner.adapt(theta, task.support).params
            objective, metrics = inner_loop.outer_objective(learner, theta, phi, task)
            return objective, metrics | {"distance": inner_loop.distance(phi, theta)}

        return linalg.differentiate(outer, params)


@dataclass(frozen=True)
class FirstOrder:
    """g = dL/dtheta + dL/dphi at phi_T, as if phi_T were theta plus a constant. Records no graph of the inner loop."""

    def meta_grad(self, learner: GradientLearner, params: Params, task: Task) -> tuple[Params, Metrics]:
        phi = learner.adapt(params, task.support).params
        by_theta, by_phi, metrics = inner_loop.outer_gradients(learner, params, phi, task)
        return axpy(1.0, by_theta, by_phi), metrics


@dataclass(frozen=True)
class Checkpointed:
    r"""The gradient of `Unrolled` without the graph of the whole inner loop, by the adjoint lambda:

        lambda_T = dL/dphi at phi_T;    lambda_k = (dF_k/dphi)^T lambda_{k+1}
        g = dL/dtheta + lambda_0 + sum_k (dF_k/dtheta)^T lambda_{k+1}

    The descent records no graph and keeps phi at every n-th step only, n = `segment`. The adjoint is then pulled back
    from the last segment of n steps to the first, each run once more for the graph of its own: T/n copies of the
    weights and n steps' graphs at a time. It costs one more pass through the inner loop, whatever n is, and the
    products are those of the plain backward pass. The idea is that of Chen et al. 2016 (arXiv 1604.06174);
    `torch.utils.checkpoint` itself is refused by function transforms, with either of its implementations.
    """

    segment: int

    def meta_grad(self, learner: GradientLearner, params: Params, task: Task) -> tuple[Params, Metrics]:
        def inner_problem(theta: Params) -> Objective:
            return learner.inner_objective(theta, task.support)

        phi, pull_back = checkpoint_descent(
            inner_problem, params, learner.inner_rule, learner.inner_steps, self.segment
        )
        by_theta, by_phi, metrics = inner_loop.outer_gradients(learner, params, phi, task)
        return axpy(1.0, by_theta, pull_back(by_phi)), metrics


@dataclass(frozen=True)
class Truncated:
    r"""g by the graph of the last n = `steps` steps alone, phi before them a constant (arXiv 1810.10667):

        g = dL/dtheta + sum_k (dF_k/dtheta)^T lambda_{k+1},   k = T-n .. T-1,   lambda_k as in `Checkpointed`

    If T <= n nothing is cut off and g is that of `Unrolled`. Theta has to enter the steps themselves, as it does by a
    proximal term: of an inner objective without it only dL/dtheta is left. Weights that are not adapted are theta's.
    """

    steps: int

    def meta_grad(self, learner: GradientLearner, params: Params, task: Task) -> tuple[Params, Metrics]:
        rule, skipped = learner.inner_rule, max(0, learner.inner_steps - self.steps)
        require_stateless(rule, params, "truncated", "all steps")
        before = last(descend(learner.inner_objective(params, task.support), params, rule, skipped))
        constant = split_adapted(before, rule)[0] if skipped else {}

        def outer(theta: Params) -> tuple[Tensor, Metrics]:
            objective, start = learner.inner_objective(theta, task.support), theta | constant
            phi = last(descend(objective, start, rule, learner.inner_steps - skipped, skipped))
            value, metrics = inner_loop.outer_objective(learner, theta, phi, task)
            return value, metrics | {"distance": inner_loop.distance(phi, theta)}

        return linalg.differentiate(outer, params)


@dataclass(frozen=True)
class MultiStep:
    r"""g = d/dtheta sum_k w_k L(theta, phi_k),  k = 1 .. T,  by the graph of all steps. w = `weights`, the last > 0.

    With `first_order` the support gradients g_k are constants, phi_{k+1} = phi_k - rate_k(theta) g_k, so that learned
    rates have their exact gradient and theta that of each loss at its phi_k.
    """

    weights: tuple[float, ...]
    first_order: bool = False

    def meta_grad(self, learner: GradientLearner, params: Params, task: Task) -> tuple[Params, Metrics]:
        constant = linearize(learner, params, task.support) if self.first_order else None

        def outer(theta: Params) -> tuple[Tensor, Metrics]:
            objective = constant or learner.inner_objective(theta, task.support)
            _, *phis = descend(objective, theta, learner.inner_rule, learner.inner_steps)
            weighted = [(w, phi) for w, phi in zip(self.weights, phis, strict=True) if w]
            losses = [inner_loop.outer_objective(learner, theta, phi, task) for _, phi in weighted]
            total = sum_scalars(w * loss for (w, _), (loss, _) in zip(weighted, losses, strict=True))
            return total, losses[-1][1] | {"distance": inner_loop.distance(phis[-1], theta)}

        return linalg.differentiate(outer, params)


def linearize(learner: GradientLearner, theta: Params, support: Batch) -> Objective:
    """An objective whose gradient at step k is, at every phi, the one that the inner loop from theta meets there."""
    gradients: list[Params] = []
    rule = learner.inner_rule

    def step(g: Params, state: Any) -> tuple[Params, Any]:
        gradients.append(g)
        return rule.step(g, state)

    objective = learner.inner_objective(theta, support)
    last(descend(objective, theta, rule._replace(step=step), learner.inner_steps))
    return lambda phi, k: dot(gradients[k], phi)


def checkpoint_descent(
    inner_problem: Callable[[Params], Objective], theta: Params, rule: UpdateRule, steps: int, segment: int
) -> tuple[Params, Callable[[Params], Params]]:
    """phi_T after T = `steps` steps on inner_problem(theta), and v -> (d phi_T / d theta)^T v by segments.

    Raises `UserError` for a rule with a state: a segment is run again from phi alone.
    """
    require_stateless(rule, theta, "inner_checkpoint", "false")

    def run_segment(theta: Params, phi: Params, first: int) -> Params:
        return last(descend(inner_problem(theta), phi, rule, min(segment, steps - first), first))

    firsts, starts = range(0, steps, segment), [theta]
    for first in firsts:
        starts.append(run_segment(theta, starts[-1], first))

    def pull_back(v: Params) -> Params:
        direct = scale(0.0, theta)
        for first, phi in reversed([*zip(firsts, starts, strict=False)]):
            adjoint = vjp(lambda theta, phi, first=first: run_segment(theta, phi, first), theta, phi)[1]
            by_theta, v = adjoint(v, retain_graph=False)
            direct = axpy(1.0, by_theta, direct)
        return axpy(1.0, v, direct)

    return starts[-1], pull_back


def require_stateless(rule: UpdateRule, theta: Params, what: str, instead: str) -> None:
    """Raise `UserError` for a rule with a state, which a descent that starts again from phi does not have."""
    if rule.init(split_adapted(theta, rule)[0], theta) is not None:
        raise UserError(f"{what}: this inner rule carries a state from step to step, which is not kept; use {instead}")


def check_checkpointing(setting: Any, first_order: bool) -> None:
    """Raise `SettingError` for an `inner_checkpoint` that cannot be."""
    sound = isinstance(setting, int) and setting >= 0
    require(sound, "inner_checkpoint", setting, "choices: false, true, a number of steps")
    needed = "must be false for a first-order gradient, which records no graph of the inner loop"
    require(not (setting and first_order), "inner_checkpoint", setting, needed)


def segment_length(setting: Any, steps: int) -> int:
    """The steps n of a segment for the setting `inner_checkpoint`: the number given, or ceil(sqrt(T) / 2) for true.

    T/n weights of P bytes and n steps' graphs of A bytes are least at n = sqrt(T P / A), and a step's graph holds at
    least four times the weights: before, after, their gradient, and what its own derivative needs. With many large
    images A is far more, and n = 1 best.
    """
    return math.ceil(math.sqrt(steps) / 2) if setting is True else int(setting)
