r"""Probes of meta-gradients and of the inner Jacobian, against closed forms on quadratic tasks.

H_S, H_Q Hessians and w_S, w_Q minimisers of support and query loss (quadratic.py), alpha the inner rate, K its steps.

    gradient descent   J = (I - alpha H_S)^K,  phi_K = w_S + J (theta - w_S)
    with a prox        A = H_S + lambda I,  phi* = A^{-1} (H_S w_S + lambda theta),  E_k = (I - alpha A)^k
                       phi_k = phi* + E_k (theta - phi*),  J_k = lambda A^{-1} + E_k (I - lambda A^{-1})
    meta-gradient      J^T grad L^Q(phi_K);  so F is quadratic, with Hessian J^T H_Q J in gradient descent
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from helpers.quadratic import (
    EXACT,
    LinearModel,
    assert_same,
    gradient,
    hessian,
    loss,
    matrix,
    minimiser,
    random_task,
    stack_tasks,
)
from torch import Tensor

from metarun.algorithms.imaml import IMAML
from metarun.algorithms.losses import CrossEntropy, MeanSquaredError
from metarun.algorithms.maml import MAML
from metarun.algorithms.protonet import ProtoNet
from metarun.algorithms.reptile import Reptile
from metarun.compute.linalg import axpy, flatten
from metarun.diagnostics import meta_gradients
from metarun.diagnostics.lanczos import directions
from metarun.diagnostics.meta_gradients import (
    SEED,
    VECTORS,
    bias_measures,
    first_order_gradient,
    implicit_measures,
    jacobian_measures,
    measure_jacobian,
    objective_measures,
    squared_norms,
    true_gradients,
    unrolled_gradient,
)
from metarun.diagnostics.task_sample import TaskSample, mean_gradient
from metarun.models.mlp import mlp
from metarun.types import Algorithm, Batch, GradientLearner, Params, Task

ALPHA = 0.15
MODEL = LinearModel(3, 2)
TASKS = [random_task(MODEL, seed) for seed in range(4)]
PROBES = TaskSample(stack_tasks(TASKS), None)
THETA = MODEL.init(0)
EYE = torch.eye(3, dtype=torch.float64)


def maml(steps: int, first_order: bool = False) -> MAML:
    return MAML(MODEL, MeanSquaredError(), ALPHA, steps, steps, first_order)


def reptile(steps: int, rule: str = "sgd", rate: float = ALPHA, batch: int | None = None) -> Reptile:
    return Reptile(MODEL, MeanSquaredError(), rule, rate, steps, steps, batch)


def imaml(steps: int, cg_steps: int = 3, prox: float = 0.8, damping: float = 0.0) -> IMAML:
    return IMAML(MODEL, MeanSquaredError(), prox, ALPHA, steps, steps, cg_steps, damping)


@dataclass(frozen=True)
class Known:
    """A task's inner loop in closed form, by gradient descent with or without a prox."""

    task: Task
    steps: int
    prox: float = 0.0

    @property
    def start(self) -> Tensor:
        return matrix(THETA)

    @property
    def curvature(self) -> Tensor:
        """A, which is H_S without a prox."""
        return hessian(self.task.support, False) + self.prox * EYE

    @property
    def jacobian(self) -> Tensor:
        decay = torch.linalg.matrix_power(EYE - ALPHA * self.curvature, self.steps)
        limit = self.prox * torch.linalg.inv(self.curvature)
        return limit + decay @ (EYE - limit)

    def phi(self, theta: Tensor) -> Tensor:
        """Linear in theta, and w_S where theta is w_S."""
        best = minimiser(self.task.support, False)
        return best + self.jacobian @ (theta - best)

    def query_gradient(self, theta: Tensor) -> Tensor:
        return gradient(self.task.query, self.phi(theta), False)

    def meta_gradient(self, theta: Tensor) -> Tensor:
        return self.jacobian.T @ self.query_gradient(theta)

    def objective(self, theta: Tensor) -> Tensor:
        return loss(self.task.query, self.phi(theta), False)


def average(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean(0)


def cosine(x: Tensor, y: Tensor) -> float:
    return float((x * y).sum() / (x.norm() * y.norm()))


LEARNERS = [maml(1), maml(4), maml(4, first_order=True), reptile(4), imaml(5)]
IDS = ["maml-1", "maml-4", "fomaml", "reptile", "imaml"]


@pytest.mark.parametrize("learner", LEARNERS, ids=IDS)
@pytest.mark.parametrize("steps", [1, 7])
def test_an_unrolled_gradient_is_the_closed_form_whatever_the_learner_steps_along(
    learner: GradientLearner, steps: int
) -> None:
    for task in TASKS:
        known = Known(task, steps, getattr(learner, "prox", 0.0))
        found, value = unrolled_gradient(learner, THETA, task, steps)
        assert_same(matrix(found), known.meta_gradient(matrix(THETA)))
        assert_same(value, known.objective(matrix(THETA)))


@pytest.mark.parametrize("steps", [1, 3])
def test_an_unrolled_gradient_is_mamls_own_and_a_first_order_one_is_fomamls(steps: int) -> None:
    """On a network with normalisation by the support set, whose statistics depend on the weights too."""
    network = mlp((2,), 3, hidden=(6, 4), norm="support")
    second = MAML(network, CrossEntropy(), 0.3, steps, steps, first_order=False)
    theta = {k: v.double() for k, v in network.init(0).items()}
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(18, 2, generator=draw, dtype=torch.float64)
    task = Task(Batch(x[:9], torch.arange(9) % 3), Batch(x[9:], torch.arange(9) % 3))
    assert_same(unrolled_gradient(second, theta, task, steps)[0], second.meta_grad(theta, task)[0])
    first = replace(second, first_order=True)
    assert_same(first_order_gradient(second, theta, task), first.meta_grad(theta, task)[0])


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_an_unrolled_gradient_goes_through_mini_batches_and_adam(rule: str) -> None:
    """Central differences of step h are off by the third derivative times h^2, about 1e-9 here."""
    learner, task, h = reptile(3, rule, rate=0.05, batch=4), TASKS[0], 1e-5

    def objective(params: Params) -> float:
        *_, adapted = learner.adaptations(params, task.support, 3)
        return float(learner.loss(learner.predict(adapted, task.query.x), task.query.y))

    found = unrolled_gradient(learner, THETA, task, 3)[0]
    for v in directions(THETA, 3, seed=5):
        slope = (objective(axpy(h, v, THETA)) - objective(axpy(-h, v, THETA))) / (2 * h)
        assert float(flatten(found) @ flatten(v)) == pytest.approx(slope, rel=1e-6)


def test_a_weight_without_a_gradient_leaves_adams_derivative_finite() -> None:
    """Input 0 is 0 in every support row: the first row of w never moves, so its part of J is the identity."""
    support, query = TASKS[0]
    dead = Task(Batch(support.x * torch.tensor([0.0, 1, 1]), support.y), query)
    learner = reptile(3, "adam", rate=0.05)
    found = matrix(unrolled_gradient(learner, THETA, dead, 3)[0])
    phi = matrix(learner.adapt(THETA, dead.support).params)
    assert found.isfinite().all()
    assert_same(found[0], gradient(query, phi, False)[0])


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_first_order_bias_is_that_of_the_closed_form(steps: int, chunk: int | None) -> None:
    learner, known = maml(steps), [Known(task, steps) for task in TASKS]
    start = matrix(THETA)
    first = average([k.query_gradient(start) for k in known])
    full = average([k.meta_gradient(start) for k in known])
    tasks = TaskSample(PROBES.tasks, chunk)
    gbar = mean_gradient(true_gradients(learner, THETA, tasks)[0])
    assert_same(matrix(gbar), full)
    found = bias_measures(learner, THETA, tasks, gbar)
    assert found["first_order_cosine"] == pytest.approx(cosine(first, full), rel=EXACT)
    assert found["first_order_ratio"] == pytest.approx(float(first.norm() / full.norm()), rel=EXACT)
    assert abs(found["first_order_ratio"] - 1) > 0.05
    assert found["meta_grad_cosine"] == pytest.approx(1, abs=EXACT)
    assert found["meta_grad_ratio"] == pytest.approx(1, abs=EXACT)
    assert found["meta_grad_error"] < EXACT


def test_the_bias_of_fomaml_and_the_direction_of_reptile_are_those_of_their_own_meta_gradients() -> None:
    start, known = matrix(THETA), [Known(task, 4) for task in TASKS]
    full = average([k.meta_gradient(start) for k in known])
    own = {"fomaml": average([k.query_gradient(start) for k in known])}
    own["reptile"] = average([start - k.phi(start) for k in known])
    for name, learner in (("fomaml", maml(4, first_order=True)), ("reptile", reptile(4))):
        gbar = mean_gradient(true_gradients(learner, THETA, PROBES)[0])
        found = bias_measures(learner, THETA, PROBES, gbar)
        assert_same(matrix(gbar), full)
        assert found["meta_grad_cosine"] == pytest.approx(cosine(own[name], full), rel=EXACT)
        assert found["meta_grad_ratio"] == pytest.approx(float(own[name].norm() / full.norm()), rel=EXACT)
        assert found["meta_grad_error"] == pytest.approx(float((own[name] - full).norm() / full.norm()), rel=EXACT)


@pytest.mark.parametrize("radius", [0.05, 0.7])
def test_sharpness_and_smoothness_of_a_quadratic_objective_are_exact(radius: float) -> None:
    """F(theta + r u) - F(theta) = r |g| + r^2/2 u' A u and |grad F(theta + r u) - g| / r = |A u|, u = g / |g|."""
    start, known = matrix(THETA), [Known(task, 3) for task in TASKS]
    g = average([k.meta_gradient(start) for k in known])
    a = average([k.jacobian.T @ hessian(k.task.query, False) @ k.jacobian for k in known])
    u = g / g.norm()
    found, gbar = objective_measures(maml(3), THETA, PROBES, radius)
    assert_same(matrix(gbar), g)
    assert found["probe_loss"] == pytest.approx(float(average([k.objective(start) for k in known])), rel=EXACT)
    expected = radius * float(g.norm()) + radius**2 / 2 * float((u * (a @ u)).sum())
    assert found["sharpness"] == pytest.approx(expected, rel=EXACT)
    assert found["smoothness"] == pytest.approx(float((a @ u).norm()), rel=1e-8)


def test_squared_norms_equal_their_definitions_and_one_task_has_no_variance() -> None:
    grads = {"a": torch.tensor([[3.0, 0.0], [1.0, 2.0]]).double(), "b": torch.tensor([4.0, 2.0]).double()}
    # gbar = (2, 1, 3); deviations (1, -1, 1) and its negative: tr Cov = 6 / 1, and 14 - 6 / 2
    assert squared_norms(grads) == {"true_grad_norm2": 11.0, "true_grad_norm2_raw": 14.0}
    assert squared_norms({k: g[:1] for k, g in grads.items()}) == {"true_grad_norm2_raw": 25.0}


def test_the_debiased_squared_norm_is_unbiased() -> None:
    """Its mean over all ways to draw two tasks of four, with replacement, is the squared norm of all tasks' mean."""
    grads = true_gradients(maml(2), THETA, PROBES)[0]
    pairs = [squared_norms({k: g[list(pair)] for k, g in grads.items()}) for pair in product(range(4), repeat=2)]
    target = float(flatten(mean_gradient(grads)) @ flatten(mean_gradient(grads)))
    assert sum(p["true_grad_norm2"] for p in pairs) / len(pairs) == pytest.approx(target, rel=EXACT)
    assert sum(p["true_grad_norm2_raw"] for p in pairs) / len(pairs) > 1.05 * target


def test_an_objective_at_its_minimum_is_flat_and_has_no_direction_to_climb() -> None:
    """One task and as many inputs as its query rows fit exactly: the gradient is 0 there."""
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(3, 2, generator=draw, dtype=torch.float64)
    batch = Batch(TASKS[0].support.x, TASKS[0].support.x @ w)
    found, _ = objective_measures(maml(1), {"w": w}, TaskSample(stack_tasks([Task(batch, batch)]), None), 0.1)
    assert found["sharpness"] == found["smoothness"] == found["true_grad_norm2_raw"] == 0
    assert "true_grad_norm2" not in found


def test_learners_without_an_inner_loop_are_measured_by_their_own_meta_gradient() -> None:
    network = mlp((2,), None, hidden=(5,), norm="batch")
    learner: Algorithm = ProtoNet(network, CrossEntropy(), 3, "euclidean", 1.0)
    theta = {k: v.double() for k, v in network.init(0).items()}
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 12, 2, generator=draw, dtype=torch.float64)
    y = (torch.arange(12) % 3).expand(2, -1)
    drawn = Task(Batch(x[:, :6], y[:, :6]), Batch(x[:, 6:], y[:, 6:]))
    found, gbar = objective_measures(learner, theta, TaskSample(drawn, None), 0.1)
    single = [learner.meta_grad(theta, Task(*(Batch(b.x[i], b.y[i]) for b in drawn))) for i in range(2)]
    assert found["probe_loss"] == pytest.approx(sum(float(m["loss"]) for _, m in single) / 2, rel=EXACT)
    assert_same(gbar, {k: (single[0][0][k] + single[1][0][k]) / 2 for k in theta})


@pytest.mark.parametrize("damping", [0.0, 2.0])
@pytest.mark.parametrize(("steps", "unrolled"), [(3, 5), (250, 250)])
def test_implicit_error_is_that_of_the_closed_forms(steps: int, unrolled: int, damping: float) -> None:
    """m = ((1 + d) I + H_S / lambda)^{-1} grad L^Q(phi_K) against u = J_U^T grad L^Q(phi_U)."""
    learner = imaml(steps, damping=damping)
    start, errors, cosines, stationary = matrix(THETA), [], [], []
    for task in TASKS:
        near, far = Known(task, steps, learner.prox), Known(task, unrolled, learner.prox)
        system = (1 + damping) * EYE + hessian(task.support, False) / learner.prox
        own, u = torch.linalg.solve(system, near.query_gradient(start)), far.meta_gradient(start)
        errors.append(float((own - u).norm() / u.norm()))
        cosines.append(cosine(own, u))
        slope = gradient(task.support, start, False)  # of the objective at theta: the prox is 0 there
        decay = torch.linalg.matrix_power(EYE - ALPHA * far.curvature, unrolled)
        stationary.append(float((decay @ slope).norm() / slope.norm()))
    found = implicit_measures(learner, THETA, PROBES, unrolled)
    assert found["implicit_error"] == pytest.approx(sum(errors) / 4, rel=1e-7, abs=1e-11)
    assert found["implicit_cosine"] == pytest.approx(sum(cosines) / 4, rel=EXACT)
    assert found["unroll_stationarity"] == pytest.approx(sum(stationary) / 4, rel=1e-6, abs=1e-12)
    if steps == 250 and damping == 0:
        assert found["implicit_error"] < 1e-9


def test_a_solver_that_stops_early_shows_in_the_implicit_error() -> None:
    """One step of conjugate gradient from 0 is x = (b'b / b'Ab) b."""
    learner, errors = imaml(250, cg_steps=1), []
    for task in TASKS:
        known = Known(task, 250, learner.prox)
        b, u = known.query_gradient(matrix(THETA)), known.meta_gradient(matrix(THETA))
        ab = b + hessian(task.support, False) @ b / learner.prox
        own = (b * b).sum() / (b * ab).sum() * b
        errors.append(float((own - u).norm() / u.norm()))
    found = implicit_measures(learner, THETA, PROBES, 250)
    assert found["implicit_error"] == pytest.approx(sum(errors) / 4, rel=1e-8)
    assert found["implicit_error"] > 0.05


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("learner", [maml(1), maml(4), reptile(4), imaml(6)], ids=["1", "4", "reptile", "prox"])
def test_the_jacobian_is_the_product_of_the_inner_steps(learner: GradientLearner, chunk: int | None) -> None:
    known = [Known(task, learner.inner_steps, getattr(learner, "prox", 0.0)).jacobian for task in TASKS]
    vectors = [matrix(v) for v in directions(THETA, 1 + VECTORS, SEED)[1:]]
    grown = [(j.T @ v).norm().log() for j in known for v in vectors]
    found = jacobian_measures(learner, THETA, TaskSample(PROBES.tasks, chunk), steps=6)
    assert found["jacobian_growth"] == pytest.approx(float(average(grown)), rel=EXACT)
    norms = [torch.linalg.matrix_norm(j, 2) for j in known]
    assert found["jacobian_norm"] == pytest.approx(float(average(norms)), rel=EXACT)


def test_an_inner_rate_beyond_two_over_the_curvature_makes_the_jacobian_grow_with_the_steps() -> None:
    """log |J^T v| then grows by log(alpha h - 1) a step, h the largest eigenvalue."""
    h = float(torch.linalg.eigvalsh(hessian(TASKS[0].support, False))[-1])
    unstable = [replace(maml(steps), inner_lr=4 / h) for steps in (20, 30)]
    vectors = directions(THETA, 2, SEED)
    measures = [measure_jacobian(learner, THETA, TASKS[0].support, vectors, vectors[0], 0) for learner in unstable]
    short, long = (float(metrics["jacobian_growth"]) for metrics in measures)
    assert long - short == pytest.approx(10 * torch.tensor(3.0).log().item(), rel=1e-3)


def test_the_jacobian_of_a_network_is_the_dense_one() -> None:
    network = mlp((2,), 1, hidden=(6,), norm="layer")
    learner = MAML(network, MeanSquaredError(), 0.3, 3, 3, first_order=False)
    theta = {k: v.double() for k, v in network.init(0).items()}
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(8, 2, generator=draw, dtype=torch.float64)
    support = Batch(x, x.prod(1, keepdim=True))
    dense = torch.func.jacrev(lambda at: learner.adapt(at, support).params)(theta)
    rows = [torch.cat([dense[a][b].reshape(theta[a].numel(), -1) for b in theta], 1) for a in theta]
    j = torch.cat(rows)
    v, start = directions(theta, 2, 7)
    found = measure_jacobian(learner, theta, support, [v], start, len(j))
    assert float(found["jacobian_growth"]) == pytest.approx(float((j.T @ flatten(v)).norm().log()), rel=EXACT)
    assert float(found["jacobian_norm"]) == pytest.approx(float(torch.linalg.matrix_norm(j, 2)), rel=EXACT)


def test_what_grows_with_the_steps_is_left_out_for_networks_that_are_not_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_gradients, "SMALL_MODEL", 6)  # the weights of the model: 6 is not below
    assert implicit_measures(imaml(2), THETA, PROBES, 2) == {}
    assert list(jacobian_measures(maml(2), THETA, PROBES, 3)) == ["jacobian_growth"]


def test_gradients_of_float32_agree_with_float64_to_a_hundred_thousandth() -> None:
    single = Task(*(Batch(b.x.float(), b.y.float()) for b in PROBES.tasks))
    theta = {k: v.float() for k, v in THETA.items()}
    wide, gbar = objective_measures(maml(3), THETA, PROBES, 0.05)
    narrow, rough = objective_measures(maml(3), theta, TaskSample(single, None), 0.05)
    for name in ("probe_loss", "true_grad_norm2", "true_grad_norm2_raw"):
        assert narrow[name] == pytest.approx(wide[name], rel=1e-5)
    for name in ("sharpness", "smoothness"):  # differences over a short way: rounding is divided by the radius
        assert narrow[name] == pytest.approx(wide[name], rel=1e-3)
    assert_same({k: v.double() for k, v in rough.items()}, gbar, rtol=1e-5)
