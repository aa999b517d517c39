"""The inner loop: steps of an update rule on an objective, one yielded after the other; and the rules."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from metarun.compute.linalg import flatten, gradient, scale, sub, unflatten
from metarun.types import MOMENTS, NOT_WEIGHTS, RATES, Objective, Params, UpdateRule

State = TypeVar("State")
MISSING = MOMENTS + "missing"


def sgd(lr: float) -> UpdateRule:
    """step = lr * g."""
    return UpdateRule(init=lambda *_: None, step=lambda g, state: (scale(lr, g), state), lr=lr)


def adam(lr: float, beta2: float = 0.999, eps: float = 1e-8) -> UpdateRule:
    """Adam with beta1 = 0, as Reptile's inner loop: v <- beta2 v + (1 - beta2) g^2, c <- beta2 c,
    step = lr * g / (sqrt(v / (1 - c)) + eps), from v = 0 and c = 1, or from their entries in theta (`init_moments`).

    c is beta2 to the number of steps, what v lacks of an average. Averages over tasks of v and of c still fit together.
    """

    # All weights as one vector: the dozen operations of a step are quick, a dozen for each of many tensors are not.
    def init(adapted: Params, theta: Params) -> Any:
        if MISSING not in theta:
            return flatten(adapted) * 0, 1.0
        return flatten({name: theta[MOMENTS + name] for name in adapted}), theta[MISSING]

    def step(g: Params, state: Any) -> tuple[Params, Any]:
        (v, missing), slope = state, flatten(g)
        state = beta2 * v + (1 - beta2) * slope**2, beta2 * missing
        return unflatten(flat_rates(state) * slope, g), state

    def flat_rates(state: Any) -> Tensor:
        v, missing = state
        return lr / (differentiable_sqrt(v / (1 - missing)) + eps)

    def rates(state: Any, like: Params) -> Params:
        return unflatten(flat_rates(state), like)

    return UpdateRule(init, step, lr, rates)


def learned_rates_rule(by_step: bool) -> UpdateRule:
    """step = rate * g with the rates `rates.NAME` of theta: one for each weight, or (`by_step`) one for the tensor at
    each step k, of which the last stays in force beyond them."""

    def init(adapted: Params, theta: Params) -> Any:
        rates = {name: theta[RATES + name] for name in adapted}
        return rates, torch.zeros((), dtype=torch.int64, device=next(iter(rates.values())).device)

    def rates_at(state: Any, k: Tensor) -> Params:
        if not by_step:
            return state[0]
        # Not rate[k]: that asks for the number k, which meta tensors, of a memory estimate, do not have.
        return {name: rate.index_select(0, k.clamp(0, len(rate) - 1).reshape(1))[0] for name, rate in state[0].items()}

    def step(g: Params, state: Any) -> tuple[Params, Any]:
        rates, k = state
        rate = rates_at(state, k)
        return {name: rate[name] * slope for name, slope in g.items()}, (rates, k + 1)

    def rates(state: Any, _: Params) -> Params:
        # A step uphill, by a rate below 0, has no proximal step after it.
        return {name: rate.clamp_min(0) for name, rate in rates_at(state, state[1] - 1).items()}

    return UpdateRule(init, step, lr=math.inf, rates=rates)


def init_rates(weights: Params, rate: float, steps: int | None) -> Params:
    """The learned rates before the first outer step: for each weight, or for each tensor at each of `steps` steps."""
    return {
        RATES + n: torch.full(w.shape if steps is None else (steps,), rate, dtype=w.dtype) for n, w in weights.items()
    }


def init_moments(weights: Params) -> Params:
    """The state of an inner Adam before its first step as entries of theta: v by the weights' names, and c."""
    one = next(iter(weights.values())).new_ones(())
    return {MOMENTS + n: torch.zeros_like(w) for n, w in weights.items()} | {MISSING: one}


def named_moments(state: Any, phi: Params) -> Params:
    """An inner Adam's state after phi, by the same names."""
    (v, missing), like = state, {n: w for n, w in phi.items() if not n.startswith(NOT_WEIGHTS)}
    return {MOMENTS + n: part for n, part in unflatten(v, like).items()} | {MISSING: missing}


def differentiable_sqrt(v: Tensor) -> Tensor:
    """sqrt(v) with the derivative 0 at 0: a weight without a gradient, as of a dead unit, must not turn the derivative
    of the whole inner loop into 0 * inf."""
    positive = v > 0
    return torch.where(positive, torch.where(positive, v, 1.0).sqrt(), 0.0)


def descend(objective: Objective, start: Params, rule: UpdateRule, steps: int, first: int = 0) -> Iterator[Params]:
    """phi_0 = start; phi_{k+1} = phi_k - rule(grad objective(phi_k, k)), then the rule's proximal step if it has one.

    Yields phi_0 ... phi_steps. The step numbers k begin with `first`.
    """
    return (phi for phi, _ in descend_with_state(objective, start, rule, steps, first))


def descend_with_state(
    objective: Objective, start: Params, rule: UpdateRule, steps: int, first: int = 0
) -> Iterator[tuple[Params, Any]]:
    """Like `descend`, each phi with the rule's state. Only the adapted parameters are differentiated."""
    adapted, _ = split_adapted(start, rule)
    phi, state = start, rule.init(adapted, start)
    yield phi, state
    for k in range(first, first + steps):

        def of_adapted(part: Params, rest: Params = phi, k: int = k) -> Tensor:
            return objective(rest | part, k)

        step, state = rule.step(gradient(of_adapted, adapted), state)
        adapted = sub(adapted, step)
        if rule.proximal_step:
            adapted = rule.proximal_step(adapted, rule.rates(state, adapted) if rule.rates else rule.lr, rule.lr)
        phi = phi | adapted
        yield phi, state


def is_adapted(name: str, rule: UpdateRule) -> bool:
    """Whether the inner loop adapts this tensor."""
    return not name.startswith(NOT_WEIGHTS) and (rule.adapted is None or name.startswith(rule.adapted))


def split_adapted(x: Params, rule: UpdateRule) -> tuple[Params, Params]:
    """The entries of `x` that the inner loop adapts, and the rest."""
    names = [name for name in x if is_adapted(name, rule)]
    return {name: x[name] for name in names}, {name: v for name, v in x.items() if name not in names}


def last(path: Iterator[State]) -> State:
    """The last state of a descent, without keeping the others."""
    return deque(path, maxlen=1).pop()
