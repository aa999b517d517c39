"""The one descent loop: steps of a rule on an objective, each state yielded so that callers can watch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
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
    step = lr * g / (sqrt(v / (1 - c)) + eps), from v = 0 and c = 1 or what theta has of them (`first_moments`).

    c is beta2 to the number of steps, what v lacks of an average. Averages over tasks of v and of c still fit together.
    """

    # Of all weights as one vector: the dozen operations a step has are quick, a dozen for each of many tensors are not.
    def init(is_adapted: Params, theta: Params) -> Any:
        if MISSING not in theta:
            return flatten(is_adapted) * 0, 1.0
        return flatten({name: theta[MOMENTS + name] for name in is_adapted}), theta[MISSING]

    def step(g: Params, state: Any) -> tuple[Params, Any]:
        (v, missing), slope = state, flatten(g)
        state = beta2 * v + (1 - beta2) * slope**2, beta2 * missing
        return unflatten(rates_of(state) * slope, g), state

    def rates_of(state: Any) -> Tensor:
        v, missing = state
        return lr / (_root(v / (1 - missing)) + eps)

    def rates(state: Any, like: Params) -> Params:
        return unflatten(rates_of(state), like)

    return UpdateRule(init, step, lr, rates)


def learned_rates_rule(by_step: bool) -> UpdateRule:
    """step = rate * g with the rates `rates.NAME` of theta: one for each weight, or (`by_step`) one for the tensor at
    each step k, of which the last stays in force beyond them."""

    def init(is_adapted: Params, theta: Params) -> Any:
        rates = {name: theta[RATES + name] for name in is_adapted}
        return rates, torch.zeros((), dtype=torch.int64, device=next(iter(rates.values())).device)

    def rates_at(state: Any, k: Tensor) -> Params:
        if not by_step:
            return state[0]
        # Not rate[k]: that asks for the number k, which meta tensors, of a memory estimate, do not have.
        return {name: rate.index_select(0, k.clamp(0, len(rate) - 1).reshape(1))[0] for name, rate in state[0].items()}

    def step(g: Params, state: Any) -> tuple[Params, Any]:
        rates, k = state
        now = rates_at(state, k)
        return {name: now[name] * slope for name, slope in g.items()}, (rates, k + 1)

    def rates(state: Any, _: Params) -> Params:
        # A step uphill, by a rate below 0, has no proximal step after it.
        return {name: rate.clamp_min(0) for name, rate in rates_at(state, state[1] - 1).items()}

    return UpdateRule(init, step, lr=math.inf, rates=rates)


def initial_rates(weights: Params, rate: float, steps: int | None) -> Params:
    """The learned rates that training begins at: for each weight, or for each tensor at so many steps."""
    return {
        RATES + n: torch.full(w.shape if steps is None else (steps,), rate, dtype=w.dtype) for n, w in weights.items()
    }


def initial_moments(weights: Params) -> Params:
    """The state of an inner Adam before its first step as entries of theta: v by the weights' names, and c."""
    one = next(iter(weights.values())).new_ones(())
    return {MOMENTS + n: torch.zeros_like(w) for n, w in weights.items()} | {MISSING: one}


def moments_of(state: Any, phi: Params) -> Params:
    """The state that an inner Adam has come to with phi, by the same names."""
    (v, missing), like = state, {n: w for n, w in phi.items() if not n.startswith(NOT_WEIGHTS)}
    return {MOMENTS + n: part for n, part in unflatten(v, like).items()} | {MISSING: missing}


def _root(v: Tensor) -> Tensor:
    """sqrt(v) with the derivative 0 at 0: a weight without a gradient, as of a dead unit, must not turn the derivative
    of the whole inner loop into 0 * inf."""
    some = v > 0
    return torch.where(some, torch.where(some, v, 1.0).sqrt(), 0.0)


def descend(objective: Objective, start: Params, rule: UpdateRule, steps: int, first: int = 0) -> Iterator[Params]:
    """phi_0 = start; phi_{k+1} = phi_k - rule(grad objective(phi_k, k)), then the rule's proximal step if it has one.

    Yields phi_0 ... phi_steps.
    """
    return (phi for phi, _ in descend_with_state(objective, start, rule, steps, first))


def descend_with_state(
    objective: Objective, start: Params, rule: UpdateRule, steps: int, first: int = 0
) -> Iterator[tuple[Params, Any]]:
    """The same, each with the rule's state.

    What the rule does not move is not differentiated either. The objective is told that its steps are those from
    number `first` on.
    """
    names = [name for name in start if is_adapted(name, rule)]
    phi, state = start, rule.init({k: start[k] for k in names}, start)
    yield phi, state
    for k in range(first, first + steps):
        part, rest = {n: phi[n] for n in names}, phi
        step, state = rule.step(gradient(of_part(objective, rest, k), part), state)
        part = sub(part, step)
        if rule.proximal_step:
            part = rule.proximal_step(part, rule.rates(state, part) if rule.rates else rule.lr, rule.lr)
        phi = {**phi, **part}
        yield phi, state


def of_part(objective: Objective, rest: Params, step: int) -> Callable[[Params], Tensor]:
    """The objective as a function of what is adapted."""
    return lambda part: objective({**rest, **part}, step)


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
