r"""What gradient-based learners make of penalties between theta and phi, in float64.

Closed forms are on quadratic tasks (quadratic.py) with the Hessian H of the support loss and b = grad L^Q(phi): iMAML's
meta-gradient is -Omega_pt^T (H + Omega_pp)^{-1} b at the minimiser phi of L^S + Omega. Finite differences are of the
whole outer objective, through the unrolled inner loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from helpers.quadratic import LinearModel, assert_same, gradient, hessian, matrix, minimiser, random_task
from torch import Tensor
from torch.func import vmap

from metarun.algorithms import inner_loop
from metarun.algorithms.imaml import IMAML
from metarun.algorithms.losses import MeanSquaredError, loss_for
from metarun.algorithms.maml import MAML
from metarun.algorithms.objective import Regularization, Schedule, Term
from metarun.algorithms.reptile import Reptile
from metarun.compute.linalg import axpy, sub
from metarun.models.conv4 import conv4
from metarun.models.mlp import mlp
from metarun.regularizers.entropy import Entropy
from metarun.regularizers.gradient_difference import GradientDifference
from metarun.regularizers.kl import KL
from metarun.regularizers.predictive_kl import PredictiveKL
from metarun.regularizers.prox_l2 import ProxL2
from metarun.types import Batch, Model, Params, Task

QUADRATIC = LinearModel(4, 2)


def terms(*of: tuple[Any, float, str]) -> Regularization:
    """From penalties, weights and places."""
    return Regularization(tuple(Term(f"p{i}", p, Schedule(w), where) for i, (p, w, where) in enumerate(of)))


def started(learner: Any) -> Params:
    """theta with the penalties' own meta-parameters."""
    return {k: v.double() for k, v in learner.regularization.init(learner.init(1)).items()}


# ---------------------------------------------------------------- iMAML on quadratic tasks


@dataclass(frozen=True)
class LinearLoss:
    """mean y * prediction: H = 0."""

    name: ClassVar[str] = "linear"
    metric: ClassVar[str] = "linear"
    higher_is_better: ClassVar[bool] = False

    def __call__(self, prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction * y).mean()

    def score(self, prediction: Tensor, y: Tensor) -> Tensor:
        return self(prediction, y)


def curvature_of(task: Task, omega_pp: Tensor) -> Tensor:
    return hessian(task.support, False) + omega_pp


def imaml(task: Task, penalty: Any, weight: float, omega_pp: Tensor, loss: Any = None) -> IMAML:
    """Whose inner steps reach the minimiser: the inner rate is the best one for the curvature H + Omega_pp."""
    values = torch.linalg.eigvalsh(omega_pp if loss else curvature_of(task, omega_pp))
    low, high = float(values[0]), float(values[-1])
    steps = 5 + int(36 / -torch.log(torch.tensor((high - low) / (high + low) + 1e-9)))
    regularization = terms((penalty, weight, "inner"))
    rate = 2 / (low + high)
    return IMAML(QUADRATIC, loss or MeanSquaredError(), 0.0, rate, steps, steps, 40, 0.0, regularization)


def eye(size: int = 4) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def minimised(task: Task, theta: Tensor, omega_pp: Tensor) -> Tensor:
    """0 = H (phi - w_S) + Omega_pp (phi - theta)."""
    h = hessian(task.support, False)
    return torch.linalg.solve(h + omega_pp, h @ minimiser(task.support, False) + omega_pp @ theta)


def expected_of(task: Task, theta: Tensor, omega_pp: Tensor) -> Tensor:
    """Omega_pp (H + Omega_pp)^{-1} b, for an Omega that is a quadratic form of phi - theta."""
    b = gradient(task.query, minimised(task, theta, omega_pp), False)
    return omega_pp @ torch.linalg.solve(curvature_of(task, omega_pp), b)


H = hessian(random_task(QUADRATIC, 0).support, False)
FISHER = 2 / 2 * H / 0.8**2  # mean_m x x^T / std^2; H = (2 / (n d)) X^T X with d = 2 outputs

QUADRATIC_PENALTIES = {
    "prox_l2": (ProxL2(), 0.6, 0.6 * eye()),
    "kl": (KL(0.3, 0.5), 0.2, 0.2 / 0.5**2 * eye()),
    "kl learned": (KL(0.3, 0.5, learned=True), 0.2, 0.2 / 0.5**2 * eye()),
    "gaussian predictive_kl": (PredictiveKL("regression", std=0.8), 0.7, 0.7 * FISHER),
    "gradient_difference": (GradientDifference(), 0.9, 0.9 * 2 * H @ H),
}


@pytest.mark.parametrize(("penalty", "weight", "omega_pp"), QUADRATIC_PENALTIES.values(), ids=QUADRATIC_PENALTIES)
def test_the_implicit_gradient_is_the_closed_form(penalty: Any, weight: float, omega_pp: Tensor) -> None:
    task = random_task(QUADRATIC, 0)
    learner = imaml(task, penalty, weight, omega_pp)
    theta = started(learner)
    found, _ = learner.meta_grad(theta, task)
    expected = expected_of(task, matrix(theta), omega_pp)
    assert_same(found["w"], expected, 1e-7)
    without_weight = torch.linalg.solve(omega_pp, expected) if penalty == ProxL2() else 2 * expected
    assert float((found["w"] - without_weight).norm() / expected.norm()) > 0.1  # the cross term needs its weight


def test_the_implicit_gradient_multiplies_a_diagonal_lambda_from_the_left() -> None:
    """g = Lambda (H + Lambda)^{-1} b, not (H + Lambda)^{-1} Lambda b."""
    task = random_task(QUADRATIC, 0)
    logs = torch.tensor([-1.0, 0.0, 0.5, 1.0], dtype=torch.float64)
    lam = torch.diag((-2 * logs).exp())
    learner = imaml(task, KL(0.3, 1.0, learned=True, learn="diagonal"), 1.0, lam)
    theta = started(learner)
    theta["reg.p0.log_std.w"] = logs[:, None].expand(4, 2).clone()
    found, _ = learner.meta_grad(theta, task)
    expected = expected_of(task, matrix(theta), lam)
    assert_same(found["w"], expected, 1e-7)
    b = torch.linalg.solve(lam @ torch.linalg.inv(curvature_of(task, lam)), expected)
    transposed = torch.linalg.solve(curvature_of(task, lam), lam @ b)
    assert float((transposed - expected).norm() / expected.norm()) > 0.05


def test_the_trained_prior_std_has_the_gradient_of_the_closed_form() -> None:
    """phi depends on ln t by lambda = w / t^2: dL^Q/d ln t = <b, (H + lambda I)^{-1} 2 lambda (phi - theta)>."""
    task, (penalty, weight, omega_pp) = random_task(QUADRATIC, 0), QUADRATIC_PENALTIES["kl learned"]
    learner = imaml(task, penalty, weight, omega_pp)
    theta = started(learner)
    found, _ = learner.meta_grad(theta, task)
    phi = minimised(task, matrix(theta), omega_pp)
    moved = torch.linalg.solve(curvature_of(task, omega_pp), 2 * omega_pp @ (phi - matrix(theta)))
    assert_same(found["reg.p0.log_std"], (gradient(task.query, phi, False) * moved).sum(), 1e-7)


@pytest.mark.parametrize(("penalty", "scale"), [(ProxL2(), 1.0), (KL(0.3, 0.5), 4.0)], ids=["prox_l2", "kl"])
def test_a_strong_proximal_penalty_leaves_the_query_gradient_at_theta(penalty: Any, scale: float) -> None:
    """The error falls as 1 / lambda: g -> grad L^Q(theta), also the first-order limit."""
    task = random_task(QUADRATIC, 0)
    errors = []
    for weight in (1e4, 1e6):
        learner = imaml(task, penalty, weight, weight * scale * eye())
        found, _ = learner.meta_grad(learner.init(1), task)
        limit = gradient(task.query, matrix(learner.init(1)), False)
        errors.append(float((found["w"] - limit).norm() / limit.norm()))
    assert errors[0] < 1e-3
    assert errors[1] < 0.011 * errors[0]


@pytest.mark.parametrize(("penalty", "scale"), [(ProxL2(), 1.0), (KL(0.3, 0.5), 4.0)], ids=["prox_l2", "kl"])
def test_a_weak_proximal_penalty_leaves_no_gradient(penalty: Any, scale: float) -> None:
    """With H positive definite phi forgets theta: g = lambda H^{-1} b + O(lambda^2)."""
    task, weight = random_task(QUADRATIC, 0), 1e-6
    learner = imaml(task, penalty, weight, weight * scale * eye())
    found, _ = learner.meta_grad(learner.init(1), task)
    b = gradient(task.query, minimiser(task.support, False), False)
    assert_same(found["w"] / weight, scale * torch.linalg.solve(hessian(task.support, False), b), 1e-4)


@pytest.mark.parametrize("weight", [0.3, 30.0])
@pytest.mark.parametrize(("penalty", "scale"), [(ProxL2(), 1.0), (KL(0.3, 0.5), 4.0)], ids=["prox_l2", "kl"])
def test_without_curvature_the_implicit_gradient_is_the_query_gradient(
    penalty: Any, scale: float, weight: float
) -> None:
    """H = 0: d phi / d theta = I whatever the weight. A cross term without its weight would be wrong by the weight."""
    task, loss = random_task(QUADRATIC, 0), LinearLoss()
    learner = imaml(task, penalty, weight, weight * scale * eye(), loss)
    found, _ = learner.meta_grad(learner.init(1), task)
    expected = task.query.x.T @ task.query.y / task.query.y.numel()
    assert_same(found["w"], expected)


# ---------------------------------------------------------------- MAML, FOMAML and Reptile

WAYS = 3
PLAIN = {"classification": mlp((2,), WAYS, (4,), "none"), "regression": mlp((2,), 2, (4,), "none")}

INSIDE_AND_OUTSIDE = {
    "kl": ("regression", [(KL(0.3, 0.7), 0.2, "both")]),
    "kl learned": ("regression", [(KL(0.3, 0.7, learned=True, learn="layer"), 0.2, "both")]),
    "kl and prox_l2": ("classification", [(KL(0.3, 0.7), 0.2, "inner"), (ProxL2(), 0.3, "outer")]),
    "forward": ("classification", [(PredictiveKL("classification"), 0.5, "both")]),
    "reverse": ("classification", [(PredictiveKL("classification", "reverse"), 0.5, "both")]),
    "gaussian": ("regression", [(PredictiveKL("regression", std=0.8), 0.5, "both")]),
    "queries": (
        "classification",
        [(PredictiveKL(rows="query"), 0.5, "outer"), (GradientDifference("query"), 0.5, "outer")],
    ),
    "gradient_difference": ("classification", [(GradientDifference(), 0.3, "both")]),
    "gradient_difference in regression": ("regression", [(GradientDifference(), 0.05, "both")]),
    "entropy": ("classification", [(Entropy(), 0.5, "outer"), (PredictiveKL("classification"), 0.5, "inner")]),
}
CASES = pytest.mark.parametrize(("kind", "penalties"), INSIDE_AND_OUTSIDE.values(), ids=INSIDE_AND_OUTSIDE)


def task_of(kind: str) -> Task:
    draw = torch.Generator().manual_seed(3)

    def batch(rows: int) -> Batch:
        x = torch.randn(rows, 2, generator=draw, dtype=torch.float64)
        return Batch(x, torch.arange(rows) % WAYS if kind == "classification" else x.sin() + x.flip(1))

    return Task(batch(7), batch(5))


def theta_of(learner: Any) -> Params:
    """Away from zero biases, with what the penalties add."""
    draw = torch.Generator().manual_seed(4)
    params = learner.regularization.init(learner.init(0))
    return {k: v.double() + 0.3 * torch.randn(v.shape, generator=draw, dtype=torch.float64) for k, v in params.items()}


def maml(kind: str, penalties: list[tuple[Any, float, str]], first_order: bool = False) -> MAML:
    return MAML(PLAIN[kind], loss_for(kind), 0.1, 3, 3, first_order, None, terms(*penalties))


def slopes(value: Callable[[Params], Tensor], at: Params, eps: float = 1e-6) -> Params:
    """Central differences along every coordinate, the perturbed starts as one batch."""
    sizes = [v.numel() for v in at.values()]
    moves = (eps * torch.eye(sum(sizes), dtype=torch.float64)).split(sizes, dim=1)
    steps = {k: part.view(-1, *v.shape) for (k, v), part in zip(at.items(), moves, strict=True)}
    found = vmap(lambda e: (value(axpy(1.0, e, at)) - value(axpy(-1.0, e, at))) / (2 * eps))(steps)
    return {k: part.view(v.shape) for (k, v), part in zip(at.items(), found.split(sizes), strict=True)}


def assert_close(found: Params, expected: Params) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


@CASES
def test_mamls_gradient_is_that_of_the_whole_outer_objective(kind: str, penalties: list[Any]) -> None:
    learner, task = maml(kind, penalties), task_of(kind)
    theta = theta_of(learner)

    def value(start: Params) -> Tensor:
        phi = learner.adapt(start, task.support).params
        return inner_loop.outer_objective(learner, start, phi, task)[0]

    assert_close(learner.meta_grad(theta, task)[0], slopes(value, theta))


@CASES
def test_fomaml_moves_theta_and_phi_together(kind: str, penalties: list[Any]) -> None:
    """Its gradient is that of v -> outer objective(theta + v, phi + v)."""
    learner, task = maml(kind, penalties, first_order=True), task_of(kind)
    theta = theta_of(learner)
    away = sub(learner.adapt(theta, task.support).params, theta)

    def value(start: Params) -> Tensor:
        return inner_loop.outer_objective(learner, start, axpy(1.0, start, away), task)[0]

    assert_close(learner.meta_grad(theta, task)[0], slopes(value, theta))


@pytest.mark.parametrize("penalty", [ProxL2(), KL(0.3, 0.7)], ids=["prox_l2", "kl"])
@pytest.mark.parametrize("algo", ["fomaml", "reptile"])
def test_a_penalty_on_the_distance_alone_is_lost_on_first_order_learners_in_the_outer_place(
    penalty: Any, algo: str
) -> None:
    """As if phi were theta plus a constant, |phi - theta| is a constant."""
    task = task_of("regression")

    def found(regularization: Regularization) -> Params:
        model, loss = PLAIN["regression"], MeanSquaredError()
        learner: Any = MAML(model, loss, 0.1, 3, 3, True, None, regularization)
        if algo == "reptile":
            learner = Reptile(model, loss, "sgd", 0.1, 3, 3, None, regularization)
        return learner.meta_grad(theta_of(learner), task)[0]

    assert_same(found(terms((penalty, 10.0, "outer"))), found(terms()), 1e-12)


SIDE = 16
IMAGES = {
    "stride, batch": conv4((1, SIDE, SIDE), WAYS, 3, "batch", "stride", "mean"),
    "max, support": conv4((1, SIDE, SIDE), WAYS, 3, "support", "max", "flatten"),
    "stride, group": conv4((1, SIDE, SIDE), WAYS, 3, "group", "stride", "mean"),
}
IMAGE_PENALTIES = [
    PredictiveKL("classification"),
    PredictiveKL("classification", "reverse"),
    GradientDifference(),
    KL(0.3, 0.7, learned=True, learn="layer"),
]


def image_task() -> Task:
    draw = torch.Generator().manual_seed(5)

    def batch(rows: int) -> Batch:
        x = torch.randn(2, rows, 1, SIDE, SIDE, generator=draw, dtype=torch.float64)
        return Batch(x, torch.arange(rows).expand(2, -1) % WAYS)

    return Task(batch(6), batch(9))


@pytest.mark.parametrize("model", list(IMAGES.values())[:2], ids=list(IMAGES)[:2])
@pytest.mark.parametrize("penalty", IMAGE_PENALTIES, ids=["forward", "reverse", "gradient_difference", "kl"])
def test_a_batch_of_image_tasks_has_the_gradients_of_its_tasks(penalty: Any, model: Model) -> None:
    """Through convolutions and batch statistics, with the penalty in both places."""
    learner = MAML(model, loss_for("classification"), 0.05, 2, 2, False, None, terms((penalty, 0.1, "both")))
    theta, tasks = theta_of(learner), image_task()
    together, _ = vmap(learner.meta_grad, in_dims=(None, 0))(theta, tasks)
    for i in range(2):
        alone, _ = learner.meta_grad(theta, Task(*(Batch(b.x[i], b.y[i]) for b in tasks)))
        assert_same({k: g[i] for k, g in together.items()}, alone, 1e-8)
        assert all(g.isfinite().all() for g in alone.values())


@pytest.mark.parametrize("model", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("penalty", [*IMAGE_PENALTIES, Entropy()], ids=["forward", "reverse", "apart", "kl", "entropy"])
def test_gradients_through_a_convolution_network_are_those_of_the_objective(penalty: Any, model: Model) -> None:
    """Along one direction: the slope of the outer objective through the unrolled loop. A gradient difference inside of
    it is differentiated three times, which torch's batch normalisation does wrongly (regularizers/rows.py)."""
    where = "outer" if isinstance(penalty, Entropy) else "both"
    learner = MAML(model, loss_for("classification"), 0.05, 2, 2, False, None, terms((penalty, 0.1, where)))
    theta, tasks = theta_of(learner), image_task()
    task = Task(*(Batch(b.x[0], b.y[0]) for b in tasks))
    draw = torch.Generator().manual_seed(6)
    way = {k: torch.randn(v.shape, generator=draw, dtype=torch.float64) for k, v in theta.items()}

    def value(step: float) -> Tensor:
        start = axpy(step, way, theta)
        return inner_loop.outer_objective(learner, start, learner.adapt(start, task.support).params, task)[0]

    found, _ = learner.meta_grad(theta, task)
    slope = sum((found[k] * way[k]).sum() for k in way)
    torch.testing.assert_close(slope, (value(1e-7) - value(-1e-7)) / 2e-7, rtol=1e-5, atol=1e-7)
