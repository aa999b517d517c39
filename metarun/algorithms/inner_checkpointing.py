r"""How the end of a descent depends on its start, without the graph of the whole descent: inner-loop checkpointing.

    phi_0 = theta;   phi_{k+1} = F_k(theta, phi_k),   k = 0 .. T-1
    lambda_T = v;    lambda_k = (dF_k/dphi)^T lambda_{k+1}
    (d phi_T / d theta)^T v = lambda_0 + sum_k (dF_k/dtheta)^T lambda_{k+1}

F_k is one step of the rule on the inner objective, which may depend on theta directly (penalties do). The graph of all
T steps takes memory in proportion to T. Here the descent records no graph and keeps phi at every n-th step only; the
adjoint lambda is then pulled back from the last segment of n steps to the first, each run once more for the graph of
its own: T/n copies of the weights and n steps' graphs at a time. It costs one more pass through the inner loop,
whatever n is, and the products are those of the plain backward pass. The idea is that of Chen et al. 2016 (arXiv
1604.06174); `torch.utils.checkpoint` itself is refused by function transforms, with either of its implementations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.func import vjp

from metarun.algorithms.inner_loop import descend, is_adapted, last
from metarun.compute.linalg import axpy, scale
from metarun.errors import UserError
from metarun.types import Objective, Params, UpdateRule

Problem = Callable[[Params], Objective]
"""theta -> the inner objective."""

Pullback = Callable[[Params], Params]
"""v -> (d phi_T / d theta)^T v."""


def checkpointed(
    problem: Problem, theta: Params, rule: UpdateRule, steps: int, segment: int
) -> tuple[Params, Pullback]:
    """phi_T after `steps` steps from theta, and its pull-back by segments of so many steps."""
    refuse_carried_state(rule, theta)

    def run(theta: Params, phi: Params, first: int) -> Params:
        return last(descend(problem(theta), phi, rule, min(segment, steps - first), first))

    firsts, starts = range(0, steps, segment), [theta]
    for first in firsts:
        starts.append(run(theta, starts[-1], first))

    def pullback(v: Params) -> Params:
        direct = scale(0.0, theta)
        for first, phi in reversed([*zip(firsts, starts, strict=False)]):
            back = vjp(lambda theta, phi, first=first: run(theta, phi, first), theta, phi)[1]
            by_theta, v = back(v, retain_graph=False)
            direct = axpy(1.0, by_theta, direct)
        return axpy(1.0, v, direct)

    return starts[-1], pullback


def segment_length(setting: Any, steps: int) -> int:
    """The steps n of a segment: as set, or ceil(sqrt(T) / 2) for true.

    T/n weights of P bytes and n steps' graphs of A bytes are least at n = sqrt(T P / A), and a step's graph holds at
    least four times the weights: before, after, their gradient, and what its own derivative needs. With many large
    images A is far more, and n = 1 best.
    """
    return math.ceil(math.sqrt(steps) / 2) if setting is True else int(setting)


def refuse_carried_state(rule: UpdateRule, theta: Params) -> None:
    """A segment is run again from phi alone."""
    if rule.init({k: v for k, v in theta.items() if is_adapted(k, rule)}, theta) is not None:
        raise UserError(
            "inner_checkpoint: this inner rule carries a state from step to step, which is not kept; use false"
        )
