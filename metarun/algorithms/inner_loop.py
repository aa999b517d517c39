"""The inner loop: update rules, the descent that takes their steps, and what a learner makes of it.

descend             phi_0 = theta, phi_1, ... of an objective and a rule
adapt, adaptations  the same for a learner, as fast weights to predict with
outer_objective     L^Q(phi) and the outer penalties of one task, by phi and by theta
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from metarun.algorithms.losses import score_prediction
from metarun.algorithms.objective import Entry, Regularization
from metarun.algorithms.penalty_protocols import Adaptation
from metarun.compute.linalg import flatten, gradient, gradients, norm, scale, sqrt, sub, sum_scalars, unflatten
from metarun.errors import require
from metarun.types import (
    HEAD,
    MOMENTS,
    NOT_WEIGHTS,
    RATES,
    AlgorithmOptions,
    Batch,
    GradientLearner,
    Loss,
    Metrics,
    Model,
    Objective,
    Params,
    Task,
    UpdateRule,
    optional,
)

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

    return UpdateRule(init, step, lr, rates, fixed=False)


def learned_rates_rule(by_step: bool, factor: float) -> UpdateRule:
    """step = factor rate * g with the rates `rates.NAME` of theta: one for each weight, or (`by_step`) one for the
    tensor at each step k, of which the last stays in force beyond them."""

    def init(adapted: Params, theta: Params) -> Any:
        rates = {name: factor * theta[RATES + name] for name in adapted}
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

    return UpdateRule(init, step, lr=math.inf, rates=rates, fixed=not by_step)


class AdaptiveState(NamedTuple):
    """What `adaptive` keeps from one step to the next, vectors flat."""

    gradient: Tensor
    moved: Tensor  # phi_k - phi_{k-1}; 0 before the first step
    carried: Tensor  # the part of it that is momentum
    rate: Tensor  # r_{k-1}
    growth: Tensor  # r_{k-1} / r_{k-2}


def adaptive(lr: float, convexity: float, momentum: bool) -> UpdateRule:
    r"""Descent whose rate comes from the curvature that it meets, for an objective that is hard to overstep:

        r_k = min( sqrt(1 + r_{k-1} / r_{k-2}) r_{k-1},   c |phi_k - phi_{k-1}| / |g_k - g_{k-1}|,   1 / m )
        momentum off:  c = 1,    phi_{k+1} = phi_k - r_k g_k
        momentum on:   c = 1/2,  x_{k+1} = phi_k - r_k g_k,   phi_{k+1} = x_{k+1} + b_k (x_{k+1} - x_k),
                       b_k = (1 - sqrt(m r_k)) / (1 + sqrt(m r_k)), or 0 where x_{k+1} - x_k goes uphill

    Symbols: r_0 `lr`, m `convexity`, the least curvature that the objective has if its loss is convex, or 0 if unknown
    (lambda for a proximal term), g_k the gradient at phi_k. The rate is that of Malitsky and Mishchenko 2020
    (arXiv 1910.09529, algorithm 1), whose proof for convex objectives has c = 1/2; b_k is Nesterov's for m-strongly
    convex ones of curvature 1 / r_k at most, with the restart of O'Donoghue and Candes 2015 (by the gradient). A step
    costs one gradient and no value of the objective, and has no branch, so it runs under `vmap`. The rates are
    constants to a derivative of the steps.
    """
    factor = 0.5 if momentum else 1.0

    def init(adapted: Params, theta: Params) -> AdaptiveState:
        zero = flatten(adapted) * 0
        return AdaptiveState(zero, zero, zero, zero.new_tensor(lr), zero.new_tensor(math.inf))

    def step(g: Params, state: Any) -> tuple[Params, Any]:
        slope = flatten(g)
        rate, growth = next_rate(slope, state)
        ahead = state.carried - rate * slope  # x_{k+1} - x_k
        carried = torch.zeros_like(ahead)
        if momentum:
            root = sqrt(convexity * rate)
            weight = torch.where((ahead * slope).sum() > 0, 0.0, (1 - root) / (1 + root))
            carried = weight * ahead
        moved = carried - rate * slope
        return unflatten(-moved, g), AdaptiveState(slope, moved, carried, rate, growth)

    def next_rate(slope: Tensor, state: AdaptiveState) -> tuple[Tensor, Tensor]:
        """r_k, and r_k / r_{k-1}: infinite before the first measurement, so that r_0 may be anything small."""
        step, turn = torch.linalg.vector_norm(state.moved), torch.linalg.vector_norm(slope - state.gradient)
        measured = (step > 0) & (turn > 0)
        bound = torch.where(measured, factor * step / torch.where(measured, turn, 1.0), state.rate)
        rate = torch.minimum(sqrt(1 + state.growth) * state.rate, bound)
        rate = rate.clamp_max(1 / convexity if convexity else math.inf).detach()
        return rate, torch.where(measured, rate / state.rate, state.growth)

    def follow(state: Any, change: Params) -> AdaptiveState:
        return state._replace(moved=flatten(change))

    return UpdateRule(init, step, lr, rates=lambda state, _: state.rate, follow=follow, fixed=False)


def init_rates(weights: Params, rate: float, steps: int | None, zero_head: bool) -> Params:
    """The learned rates before the first outer step: for each weight, or for each tensor at each of `steps` steps.

    The rows of a head of 0, one for each class, share theirs: no class differs from the others before it is seen.
    """

    def shape(name: str, weight: Tensor) -> tuple[int, ...]:
        if steps is not None:
            return (steps,)
        return (1, *weight.shape[1:]) if zero_head and name.startswith(HEAD) else tuple(weight.shape)

    return {RATES + n: torch.full(shape(n, w), rate, dtype=w.dtype) for n, w in weights.items()}


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
    return torch.where(positive, sqrt(torch.where(positive, v, 1.0)), 0.0)


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

        before = adapted
        step, state = rule.step(gradient(of_adapted, adapted), state)
        adapted = sub(adapted, step)
        if rule.proximal_step:
            adapted = rule.proximal_step(adapted, rule.rates(state, adapted) if rule.rates else rule.lr, rule.lr)
            state = rule.follow(state, sub(adapted, before)) if rule.follow else state
        phi = phi | adapted
        yield phi, state


def is_adapted(name: str, rule: UpdateRule) -> bool:
    """Whether the inner loop adapts this tensor."""
    return not name.startswith(NOT_WEIGHTS) and (rule.adapted is None or is_chosen(name, rule.adapted))


def is_chosen(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a name begins with one of these prefixes and with none of those after a minus; if all of them have one,
    whether it begins with none."""
    left_out = tuple(prefix[1:] for prefix in prefixes if prefix.startswith("-"))
    chosen = tuple(prefix for prefix in prefixes if not prefix.startswith("-"))
    return name.startswith(chosen or "") and not name.startswith(left_out)


def split_adapted(x: Params, rule: UpdateRule) -> tuple[Params, Params]:
    """The entries of `x` that the inner loop adapts, and the rest."""
    names = [name for name in x if is_adapted(name, rule)]
    return {name: x[name] for name in names}, {name: v for name, v in x.items() if name not in names}


def last(path: Iterator[State]) -> State:
    """The last state of a descent, without keeping the others."""
    return deque(path, maxlen=1).pop()


def init_weights(model: Model, seed: int, zero_head: bool) -> Params:
    """The network's first weights; with `zero_head` those of its head are 0, where the outer loop leaves them.

    A row w added to each class's weights changes no softmax and no gradient of its loss, so a head of equal rows is one
    of 0: UNICORN-MAML (Ye and Chao 2022, arXiv 2106.16245) is the zeroing of Kao, Chiu and Chen 2022
    (arXiv 2106.15367). No class has weights of its own before it is seen, and the first inner step makes them the
    class's mean features against those of the others.
    """
    weights = model.init(seed)
    return weights | {n: torch.zeros_like(w) for n, w in weights.items() if zero_head and n.startswith(HEAD)}


def fit_head(params: Params, rows: int) -> Params:
    """The same meta-parameters with a head of 0 for so many outputs."""
    return params | {n: w.new_zeros(rows, *w.shape[1:]) for n, w in params.items() if n.startswith(HEAD)}


class FastWeights(NamedTuple):
    """Adapted network weights, and the statistics its queries are normalised with (None: their own)."""

    params: Params
    stats: Any


def fast_weights(model: Model, phi: Params, support: Batch) -> FastWeights:
    return FastWeights(phi, model.query_stats(phi, support.x))


def start(learner: GradientLearner, theta: Params, support: Batch) -> Params:
    """phi_0: theta, or what the learner makes of theta and the support set."""
    make = optional(learner, AlgorithmOptions, "start")
    return make(theta, support) if make else theta


def adapt(learner: GradientLearner, theta: Params, support: Batch) -> FastWeights:
    """The end of the inner loop as in training."""
    theta = start(learner, theta, support)
    phis = descend(learner.inner_objective(theta, support), theta, learner.inner_rule, learner.inner_steps)
    return fast_weights(learner.model, last(phis), support)


def adaptations(learner: GradientLearner, theta: Params, support: Batch, steps: int) -> Iterator[FastWeights]:
    """phi_0, phi_1, ... phi_steps of the inner loop."""
    theta = start(learner, theta, support)
    for phi in descend(learner.inner_objective(theta, support), theta, learner.inner_rule, steps):
        yield fast_weights(learner.model, phi, support)


def bind_loss(model: Model, loss: Loss, batch: Batch) -> Objective:
    """phi -> mean loss of the batch; the step number of a descent is of no account."""

    def objective(phi: Params, step: int = 0) -> Tensor:
        return loss(model.apply(phi, batch.x), batch.y)

    return objective


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
    inner_lr: float,
    inner_steps: int,
    test_inner_steps: int,
    adapted: tuple[str, ...] | None = None,
    zero_head: bool = False,
) -> None:
    """The ranges that every algorithm with an inner loop shares."""
    require(inner_lr > 0, "inner_lr", inner_lr, "must be above 0 (a step size on the mean support loss)")
    require(inner_steps >= 1, "inner_steps", inner_steps, "must be at least 1")
    require(test_inner_steps >= 0, "test_inner_steps", test_inner_steps, "must be at least 0")
    require(adapted is None or len(adapted) > 0, "adapted", [], "names nothing; null adapts everything")
    require("-" not in (adapted or ()), "adapted", adapted, "leaves out everything; -head leaves out the head")
    moves = adapted is None or is_chosen(f"{HEAD}weight", adapted)
    require(moves or not zero_head, "zero_head", True, "needs the head among algo.adapted: it starts at 0")
