"""The descent loop and its rules, against closed forms and torch's own optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers.quadratic import LinearModel, assert_same, hessian, matrix, minimiser, random_task
from torch import Tensor

from metarun.algorithms.inner_loop import (
    Objective,
    UpdateRule,
    adam,
    adaptive,
    descend,
    descend_with_state,
    init_moments,
    last,
    named_moments,
    sgd,
)
from metarun.algorithms.losses import MeanSquaredError
from metarun.types import MOMENTS, Batch, Params

MODEL = LinearModel(3, 2, bias=True)
SUPPORT = random_task(MODEL, seed=0).support


def objective_on(batch: Batch) -> Objective:
    return lambda phi, _step: MeanSquaredError()(MODEL.apply(phi, batch.x), batch.y)


def test_gradient_descent_on_a_quadratic_contracts_by_its_matrix() -> None:
    """phi_{k+1} - w* = phi_k - w* - lr H (phi_k - w*), so phi_k = w* + (I - lr H)^k (phi_0 - w*)."""
    lr, steps = 0.1, 7
    start, best = MODEL.init(1), minimiser(SUPPORT, bias=True)
    contraction = torch.eye(4, dtype=torch.float64) - lr * hessian(SUPPORT, bias=True)
    descend_with_state = list(descend(objective_on(SUPPORT), start, sgd(lr), steps))
    for k, phi in enumerate(descend_with_state):
        power = torch.linalg.matrix_power(contraction, k)
        assert_same(matrix(phi), best + power @ (matrix(start) - best))


@pytest.mark.parametrize("eps", [1e-8, 0.1])
def test_adam_without_momentum_takes_the_steps_of_torch(eps: float) -> None:
    """torch.optim.Adam with betas (0, 0.999): the first moment is the gradient itself, its correction 1 - 0^k is 1.

    Each step sees other rows, so that the gradients do not merely shrink; a large eps shows where it is added.
    """
    lr, steps = 0.05, 8

    def rows(step: int) -> Batch:
        return Batch(SUPPORT.x[step : step + 2], SUPPORT.y[step : step + 2])

    def objective(phi: Params, step: int) -> Tensor:
        return MeanSquaredError()(MODEL.apply(phi, rows(step).x), rows(step).y)

    start = MODEL.init(2)
    torch_params = {k: p.clone().requires_grad_() for k, p in start.items()}
    optimizer = torch.optim.Adam(torch_params.values(), lr, betas=(0.0, 0.999), eps=eps)
    for step, phi in enumerate(descend(objective, start, adam(lr, eps=eps), steps)):
        assert_same(phi, torch_params)
        if step < steps:
            optimizer.zero_grad()
            objective(torch_params, step).backward()
            optimizer.step()


def test_adam_goes_on_from_the_moments_that_theta_has() -> None:
    """Two descents of four steps, the second from the first one's moments, are eight steps of torch's one Adam."""
    lr, start, objective = 0.05, MODEL.init(2), objective_on(SUPPORT)
    torch_params = {k: p.clone().requires_grad_() for k, p in start.items()}
    optimizer = torch.optim.Adam(torch_params.values(), lr, betas=(0.0, 0.999))
    theta = start | init_moments(start)
    for _ in range(2):
        phi, state = last(descend_with_state(objective, theta, adam(lr), 4))
        theta = phi | named_moments(state, phi)
    for _ in range(8):
        optimizer.zero_grad()
        objective(torch_params, 0).backward()
        optimizer.step()
    assert_same({k: theta[k] for k in start}, torch_params)
    assert_same(
        {k: theta[MOMENTS + k] for k in start}, {k: optimizer.state[p]["exp_avg_sq"] for k, p in torch_params.items()}
    )
    assert float(theta[MOMENTS + "missing"]) == pytest.approx(0.999**8, rel=1e-12)


def test_the_first_step_of_adam_is_the_learning_rate_times_the_sign() -> None:
    """v = (1 - beta2) g^2 and its correction 1 - beta2 give sqrt(v / correction) = |g|: lr g / (|g| + eps)."""
    g = {"w": torch.tensor([3.0, -0.5, 1e-3], dtype=torch.float64)}
    rule = adam(lr=0.1, eps=0.0)
    step, _ = rule.step(g, rule.init(g, g))
    assert_same(step["w"], torch.tensor([0.1, -0.1, 0.1], dtype=torch.float64))


@pytest.mark.parametrize("rule", [sgd(0.1), adam(0.1)], ids=["sgd", "adam"])
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_descent_yields_the_start_and_one_state_per_step(rule: UpdateRule, steps: int) -> None:
    """phi_0 .. phi_steps are steps + 1 states, the first of which is the start, and `final` is the last."""
    start = MODEL.init(3)
    before = {k: p.clone() for k, p in start.items()}
    descend_with_state = list(descend(objective_on(SUPPORT), start, rule, steps))
    assert len(descend_with_state) == steps + 1
    assert_same(descend_with_state[0], before, rtol=0)
    assert_same(last(descend(objective_on(SUPPORT), start, rule, steps)), descend_with_state[-1], rtol=0)
    assert_same(start, before, rtol=0)  # a descent leaves its start as it was


def test_the_objective_is_told_the_number_of_each_step() -> None:
    """Steps are numbered 0 .. steps - 1, which is what picks a mini-batch."""
    seen: list[int] = []

    def counting(plain: Objective) -> Callable[[Params, int], Tensor]:
        def objective(phi: Params, step: int) -> Tensor:
            seen.append(step)
            return plain(phi, step)

        return objective

    last(descend(counting(objective_on(SUPPORT)), MODEL.init(4), sgd(0.1), 4))
    assert seen == [0, 1, 2, 3]


# ---------------------------------------------------------------- rates from the curvature


def quadratic(condition: float, size: int = 20) -> tuple[Objective, Params, Tensor]:
    """An objective with eigenvalues 1 .. `condition`, a start, and the minimiser."""
    generator = torch.Generator().manual_seed(0)
    b, start = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    q = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    a = q @ torch.diag(torch.logspace(0, math.log10(condition), size, dtype=torch.float64)) @ q.T
    return lambda phi, _: phi["w"] @ a @ phi["w"] / 2 - b @ phi["w"], {"w": start}, torch.linalg.solve(a, b)


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("convexity", [0.0, 1.0])
@pytest.mark.parametrize("first_rate", [1e-3, 1e-2, 10.0])
def test_an_adaptive_descent_solves_a_quadratic_from_any_first_rate(
    first_rate: float, convexity: float, momentum: bool
) -> None:
    """A fixed rate of 10 would overflow; the best fixed one, 2 / (1 + 100), needs 1 150 steps for 1e-10."""
    objective, start, best = quadratic(100.0)
    phi = last(descend(objective, start, adaptive(first_rate, convexity, momentum), 400))
    assert float((phi["w"] - best).norm() / (start["w"] - best).norm()) < 1e-9


def test_momentum_helps_where_the_curvatures_differ_much() -> None:
    objective, start, best = quadratic(1000.0)
    plain, ahead = (
        float((last(descend(objective, start, adaptive(1e-3, 1.0, momentum), 400))["w"] - best).norm())
        for momentum in (False, True)
    )
    assert ahead < plain / 1000


@pytest.mark.parametrize("momentum", [False, True])
def test_the_steps_of_an_adaptive_descent_follow_its_formula(momentum: bool) -> None:
    """x and phi by hand: x_{k+1} = phi_k - r_k g_k, phi_{k+1} = x_{k+1} + b_k (x_{k+1} - x_k)."""
    objective, start, _ = quadratic(30.0)
    lr, m, factor = 0.02, 1.0, 0.5 if momentum else 1.0
    phis = [phi["w"] for phi in descend(objective, start, adaptive(lr, m, momentum), 12)]
    x, rate, growth, slopes = phis[0], lr, math.inf, []
    for k, phi in enumerate(phis[:-1]):
        slopes.append(torch.func.grad(lambda w: objective({"w": w}, 0))(phi))
        if k:
            measured = factor * float((phi - phis[k - 1]).norm() / (slopes[k] - slopes[k - 1]).norm())
            new = min(math.sqrt(1 + growth) * rate, measured, 1 / m)
            rate, growth = new, new / rate
        moved_to, beta = phi - rate * slopes[k], (1 - math.sqrt(m * rate)) / (1 + math.sqrt(m * rate))
        if not momentum or (moved_to - x) @ slopes[k] > 0:
            beta = 0.0
        assert_same(phis[k + 1], moved_to + beta * (moved_to - x))
        x = moved_to


def test_an_adaptive_descent_stays_where_it_has_arrived() -> None:
    """At a minimiser neither the step nor the change of the gradient is there to divide by."""
    objective, _, best = quadratic(10.0)
    constant = last(descend(lambda phi, _: phi["w"].sum() * 0, {"w": best}, adaptive(0.1, 0.0, True), 5))
    assert_same(constant["w"], best)
    assert_same(last(descend(objective, {"w": best}, adaptive(0.1, 1.0, True), 50))["w"], best)
