"""The curvature of the outer objective against dense Hessians, and the limit of 2 against steps on quadratics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.quadratic import EXACT, LinearModel, hessian, random_task, stack_tasks
from torch import Tensor
from torch.func import grad, jacrev

from metarun.algorithms.losses import CrossEntropy, MeanSquaredError
from metarun.algorithms.maml import MAML
from metarun.algorithms.protonet import ProtoNet
from metarun.compute.linalg import flatten, unflatten
from metarun.config.schema import OptimConfig
from metarun.diagnostics.outer_curvature import outer_curvature_measures
from metarun.diagnostics.task_sample import TaskSample
from metarun.models.mlp import mlp
from metarun.training.optimizer import apply_update, build_optimizer, stable_rates
from metarun.types import Batch, Params, Task

MODEL = LinearModel(4, 2)
TASKS = [random_task(MODEL, seed) for seed in range(3)]
SAMPLE = TaskSample(stack_tasks(TASKS), None)
ALPHA, K = 0.1, 2


def maml(first_order: bool = False) -> MAML:
    return MAML(MODEL, MeanSquaredError(), ALPHA, K, K, first_order)


def outer_hessian() -> Tensor:
    """mean_i J_i^T H_Q J_i, J = (I - alpha H_S)^K, of one of the two outputs."""
    eye = torch.eye(4, dtype=torch.float64)
    parts = []
    for task in TASKS:
        support, query = (hessian(rows, bias=False) for rows in (task.support, task.query))
        jacobian = torch.linalg.matrix_power(eye - ALPHA * support[:4, :4], K)
        parts.append(jacobian.T @ query[:4, :4] @ jacobian)
    return torch.stack(parts).mean(0)


@pytest.mark.parametrize("first_order", [False, True])  # F is the same, whatever the learner steps along
def test_of_quadratic_tasks_it_is_the_rate_times_the_largest_eigenvalue(first_order: bool) -> None:
    found = outer_curvature_measures(maml(first_order), MODEL.init(0), SAMPLE, 0.3, 8)
    known = 0.3 * float(torch.linalg.eigvalsh(outer_hessian())[-1])
    assert found["outer_rate_curvature"] == pytest.approx(known, rel=EXACT)
    assert found["outer_hessian_residual"] < 1e-7


def test_rates_of_each_weight_scale_both_sides() -> None:
    params = MODEL.init(0)
    rates = {name: torch.rand(p.shape, generator=torch.Generator().manual_seed(1)).to(p) for name, p in params.items()}
    found = outer_curvature_measures(maml(), params, SAMPLE, rates, 8)

    def objective(flat: Tensor) -> Tensor:
        losses = [adapted_loss(unflatten(flat, params), task) for task in TASKS]
        return torch.stack(losses).mean()

    dense = jacrev(grad(objective))(flatten(params))
    scaled = torch.linalg.eigvals(flatten(rates)[:, None] * dense).real  # R H has the eigenvalues of R^(1/2) H R^(1/2)
    assert found["outer_rate_curvature"] == pytest.approx(float(scaled.max()), rel=EXACT)


def adapted_loss(theta: Params, task: Task) -> Tensor:
    def loss(at: Params, rows: Batch) -> Tensor:
        return MeanSquaredError()(MODEL.apply(at, rows.x), rows.y)

    for _ in range(K):
        slope = grad(loss)(theta, task.support)
        theta = {name: w - ALPHA * slope[name] for name, w in theta.items()}
    return loss(theta, task.query)


def test_a_learner_without_an_inner_loop_is_that_of_its_own_loss() -> None:
    model = mlp((3,), None, (4,), "none", activation="tanh")
    labels = torch.arange(2).repeat(3)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    task = Task(Batch(x, labels), Batch(x + 0.3, labels))
    sample = TaskSample(stack_tasks([task, Task(Batch(x * 1.1, labels), Batch(x, labels))]), None)
    learner = ProtoNet(model, CrossEntropy(), 2, "euclidean", 1.0)
    params = {name: w.double() for name, w in model.init(0).items()}
    found = outer_curvature_measures(learner, params, sample, 0.5, 64)
    columns = []
    flat = flatten(params)
    for j in range(len(flat)):
        ends = []
        for sign in (1, -1):
            moved = flat.clone()
            moved[j] += sign * 1e-5
            gradients = sample.each(learner.meta_grad, unflatten(moved, params))[0]
            ends.append(flatten({name: g.mean(0) for name, g in gradients.items()}))
        columns.append((ends[0] - ends[1]) / 2e-5)
    known = 0.5 * float(torch.linalg.eigvalsh(torch.stack(columns))[-1])
    assert found["outer_rate_curvature"] == pytest.approx(known, rel=1e-6)


def test_a_large_network_is_left_out() -> None:
    model = mlp((3,), 1, (200, 200), "none")
    learner = MAML(model, MeanSquaredError(), 0.1, 1, 1, False)
    assert outer_curvature_measures(learner, model.init(0), SAMPLE, 0.1, 2) == {}


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("product", "stable"), [(1.98, True), (2.02, False)])
def test_descent_with_momentum_diverges_above_2(momentum: float, product: float, stable: bool) -> None:
    h = 3.0
    settings = OptimConfig(name="sgd", lr=1.0, momentum=momentum)
    params = {"w": torch.ones(1, dtype=torch.float64)}
    optimizer = build_optimizer(settings, params)
    lr = product / h / float(stable_rates(optimizer, params, 1.0))  # R is proportional to lr
    for _ in range(4000):
        apply_update(optimizer, params, {"w": h * params["w"]}, lr)
        if not 1e-30 < abs(float(params["w"])) < 1e30:
            break
    assert (abs(float(params["w"])) < 1) is stable


def test_adam_is_at_the_edge_at_2() -> None:
    """Its step with v_hat held is linear in (w, m): at R h = 2 its matrix has a modulus of 1."""
    params = {"w": torch.tensor([2.0, -1.0], dtype=torch.float64)}
    optimizer = build_optimizer(OptimConfig(name="adam", lr=0.01, eps=1e-8), params)
    for _ in range(3):
        apply_update(optimizer, params, {"w": params["w"].clone()}, 0.01)
    rates = stable_rates(optimizer, params, 0.01)
    assert isinstance(rates, dict)
    state = optimizer.state[params["w"]]
    scaled = 0.01 / ((state["exp_avg_sq"] / (1 - 0.999**3)).sqrt() + 1e-8)
    for rate, step in zip(rates["w"].tolist(), scaled.tolist(), strict=True):
        h = 2 / rate
        matrix = np.array([[1 - step * 0.1 * h, -step * 0.9], [0.1 * h, 0.9]])  # m <- .9 m + .1 h w, w <- w - step m
        assert max(abs(np.linalg.eigvals(matrix))) == pytest.approx(1.0, abs=1e-7)
        assert math.isclose(rate, step * 0.1 / 1.9, rel_tol=1e-6)
