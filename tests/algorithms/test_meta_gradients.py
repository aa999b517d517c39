r"""Meta-gradients against closed forms on quadratic tasks, against finite differences and other implementations.

On a quadratic task (quadratic.py) with Hessians H_S, H_Q and minimisers w_S, w_Q everything is linear:
T gradient steps at rate alpha from theta end in phi_T = w_S + (I - alpha H_S)^T (theta - w_S).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
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
    weights,
)
from torch import Tensor
from torch.func import grad, vmap

from metarun.algorithms.imaml import IMAML
from metarun.algorithms.losses import CrossEntropy, MeanSquaredError
from metarun.algorithms.maml import MAML
from metarun.algorithms.reptile import Reptile
from metarun.compute.linalg import norm, sub
from metarun.models.conv4 import conv4
from metarun.models.mlp import mlp
from metarun.types import Algorithm, Batch, Params, Task

ALPHA = 0.15
MODELS = pytest.mark.parametrize(
    "model", [LinearModel(4, 1), LinearModel(3, 2, bias=True)], ids=["one-output", "two-outputs-and-bias"]
)


def maml(model: LinearModel, steps: int, first_order: bool = False) -> MAML:
    return MAML(model, MeanSquaredError(), ALPHA, steps, steps, first_order)


def reptile(model: LinearModel, steps: int, rule: str = "sgd", batch: int | None = None) -> Reptile:
    return Reptile(model, MeanSquaredError(), rule, ALPHA, steps, steps, batch)


def imaml(
    model: LinearModel, task: Task, prox: float, cg_steps: int, damping: float = 0.0, steps: int | None = None
) -> IMAML:
    """With the inner rate 2 / (l + L), l and L the extreme eigenvalues of A = H_S + lambda I.

    Every mode then contracts by at least (L - l) / (L + l) a step; by default as many steps as bring that to 1e-14.
    """
    curvatures = torch.linalg.eigvalsh(hessian(task.support, model.bias)) + prox
    low, high = float(curvatures[0]), float(curvatures[-1])
    enough = math.ceil(math.log(1e-14) / math.log((high - low) / (high + low)))
    steps = steps or enough
    return IMAML(model, MeanSquaredError(), prox, 2 / (low + high), steps, steps, cg_steps, damping)


def contraction(model: LinearModel, task: Task) -> Tensor:
    """I - alpha H_S."""
    h = hessian(task.support, model.bias)
    return torch.eye(len(h), dtype=torch.float64) - ALPHA * h


def adapted(model: LinearModel, theta: Tensor, task: Task, steps: int) -> Tensor:
    """phi_T = w_S + (I - alpha H_S)^T (theta - w_S)."""
    best = minimiser(task.support, model.bias)
    return best + torch.linalg.matrix_power(contraction(model, task), steps) @ (theta - best)


def prox_minimiser(model: LinearModel, theta: Tensor, task: Task, prox: float) -> Tensor:
    """0 = H_S (phi - w_S) + lambda (phi - theta) gives phi = (H_S + lambda I)^{-1} (H_S w_S + lambda theta)."""
    h = hessian(task.support, model.bias)
    a = h + prox * torch.eye(len(h), dtype=torch.float64)
    return torch.linalg.solve(a, h @ minimiser(task.support, model.bias) + prox * theta)


def double(params: Params) -> Params:
    return {k: p.double() for k, p in params.items()}


# ---------------------------------------------------------------- MAML and FOMAML


@MODELS
@pytest.mark.parametrize("steps", [1, 3])
def test_maml_multiplies_the_query_gradient_by_the_jacobian_of_its_steps(model: LinearModel, steps: int) -> None:
    """d phi_T / d theta = (I - alpha H_S)^T, so g = (I - alpha H_S)^T grad L_Q(phi_T); H_S is symmetric."""
    for seed in range(3):
        task, params = random_task(model, seed), model.init(seed)
        phi = adapted(model, matrix(params), task, steps)
        jacobian = torch.linalg.matrix_power(contraction(model, task), steps)
        expected = jacobian @ gradient(task.query, phi, model.bias)
        found, _ = maml(model, steps).meta_grad(params, task)
        assert_same(found, weights(expected, model.bias))


@MODELS
@pytest.mark.parametrize("steps", [1, 3])
def test_first_order_maml_is_the_query_gradient_at_the_adapted_weights(model: LinearModel, steps: int) -> None:
    """FOMAML takes d phi_T / d theta for I: g = grad L_Q(phi_T)."""
    task, params = random_task(model, 1), model.init(1)
    expected = gradient(task.query, adapted(model, matrix(params), task, steps), model.bias)
    found, _ = maml(model, steps, first_order=True).meta_grad(params, task)
    assert_same(found, weights(expected, model.bias))


@MODELS
def test_metrics_are_the_query_loss_and_the_distance_at_the_adapted_weights(model: LinearModel) -> None:
    """loss = mse = L_Q(phi_T) and distance = |phi_T - theta|, in MAML, FOMAML and Reptile alike."""
    task, params = random_task(model, 2), model.init(2)
    phi = adapted(model, matrix(params), task, 3)
    for algorithm in (maml(model, 3), maml(model, 3, first_order=True), reptile(model, 3)):
        _, metrics = algorithm.meta_grad(params, task)
        assert set(metrics) == {"loss", "mse", "distance"}
        assert_same(metrics["loss"], loss(task.query, phi, model.bias))
        assert_same(metrics["mse"], metrics["loss"], rtol=0)
        assert_same(metrics["distance"], torch.linalg.vector_norm(phi - matrix(params)))


@MODELS
def test_adaptation_takes_the_training_steps_and_adaptations_as_many_as_asked(model: LinearModel) -> None:
    """`adapt` is phi_T for T = inner_steps; `adaptations(.., 5)` are phi_0 .. phi_5, whatever T is."""
    task, params = random_task(model, 3), model.init(3)
    for algorithm in (maml(model, 2), reptile(model, 2)):
        assert_same(matrix(algorithm.adapt(params, task.support).params), adapted(model, matrix(params), task, 2))
        states = list(algorithm.adaptations(params, task.support, 5))
        assert len(states) == 6
        for k, state in enumerate(states):
            assert_same(matrix(state.params), adapted(model, matrix(params), task, k))


def sine_task(seed: int, rows: int = 12) -> Task:
    """A small nonlinear regression problem in float64."""
    draw = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(2, rows, 1, generator=draw, dtype=torch.float64) - 2
    y = torch.sin(2 * x + 0.3)
    return Task(Batch(x[0], y[0]), Batch(x[1], y[1]))


@pytest.mark.parametrize("steps", [1, 3])
def test_maml_equals_central_finite_differences_on_a_small_network(steps: int) -> None:
    """(F(theta + h v) - F(theta - h v)) / 2h = <g, v> + O(h^2), where F = L_Q(phi_T(theta)).

    In float64 rounding adds about 1e-16 F / h. With h = 1e-5 both are below 1e-9; 1e-7 leaves room for large third
    derivatives. The network is piecewise smooth, and a step of 1e-5 meets no kink at these seeds.
    """
    network = mlp((1,), 1, (6, 5), "none")
    algorithm = MAML(network, MeanSquaredError(), 0.1, steps, steps, False)
    params, task, h = double(network.init(0)), sine_task(0), 1e-5

    def objective(theta: Params) -> Tensor:
        state = algorithm.adapt(theta, task.support)
        return MeanSquaredError()(algorithm.predict(state, task.query.x), task.query.y)

    found, _ = algorithm.meta_grad(params, task)
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        v = {k: torch.randn(p.shape, generator=draw, dtype=torch.float64) for k, p in params.items()}
        forward = objective({k: p + h * v[k] for k, p in params.items()})
        backward = objective({k: p - h * v[k] for k, p in params.items()})
        slope = sum((found[k] * v[k]).sum() for k in v)
        assert_same(slope, (forward - backward) / (2 * h), rtol=1e-7)


WAYS, CHANNELS, FILTERS = 3, 2, 4


def image_task(seed: int, shots: int = 2, queries: int = 3) -> Task:
    draw = torch.Generator().manual_seed(seed)

    def batch(per_class: int) -> Batch:
        x = torch.randn(WAYS * per_class, CHANNELS, 12, 12, generator=draw, dtype=torch.float64)
        return Batch(x, torch.arange(WAYS).repeat(per_class))

    return Task(batch(shots), batch(queries))


def textbook_conv4(params: Params, x: Tensor) -> Tensor:
    """Four blocks of 3x3 convolution with stride 2, batch normalisation, ReLU; the spatial mean; a linear head."""
    for i in range(4):
        x = F.conv2d(x, params[f"block{i}.weight"], stride=2, padding=1)
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = (x - mean).square().mean((0, 2, 3), keepdim=True)
        gain, shift = (params[f"block{i}.{name}"][None, :, None, None] for name in ("gain", "shift"))
        x = F.relu((x - mean) / (variance + 1e-5).sqrt() * gain + shift)
    return x.mean((2, 3)) @ params["head.weight"].T + params["head.bias"]


@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
def test_maml_on_convolutions_with_batch_norm_equals_plain_autograd(first_order: bool) -> None:
    """An implementation without torch.func: autograd.grad(create_graph=True) per step, then one backward pass."""
    network = conv4((CHANNELS, 12, 12), WAYS, FILTERS, "batch", "stride", "mean")
    algorithm = MAML(network, CrossEntropy(), 0.4, 2, 2, first_order)
    params, task = double(network.init(0)), image_task(0)

    theta = {k: p.clone().requires_grad_() for k, p in params.items()}
    phi = theta
    for _ in range(2):
        support_loss = F.cross_entropy(textbook_conv4(phi, task.support.x), task.support.y)
        grads = torch.autograd.grad(support_loss, list(phi.values()), create_graph=not first_order)
        phi = {k: p - 0.4 * g for (k, p), g in zip(phi.items(), grads, strict=True)}
    query_loss = F.cross_entropy(textbook_conv4(phi, task.query.x), task.query.y)
    expected = dict(zip(theta, torch.autograd.grad(query_loss, list(theta.values())), strict=True))

    found, metrics = algorithm.meta_grad(params, task)
    # Entries that vanish by symmetry (as those of the head's bias nearly do) are compared on the gradient's scale.
    assert_same(torch.cat([found[k].flatten() for k in found]), torch.cat([expected[k].flatten() for k in found]))
    assert_same(metrics["loss"], query_loss)


# ---------------------------------------------------------------- Reptile


@MODELS
@pytest.mark.parametrize("steps", [1, 4])
def test_reptile_is_the_way_back_from_the_adapted_weights(model: LinearModel, steps: int) -> None:
    """g = theta - phi_T = (I - (I - alpha H_S)^T) (theta - w_S)."""
    task, params = random_task(model, 4), model.init(4)
    away = matrix(params) - minimiser(task.support, model.bias)
    expected = away - torch.linalg.matrix_power(contraction(model, task), steps) @ away
    found, _ = reptile(model, steps).meta_grad(params, task)
    assert_same(found, weights(expected, model.bias))


@MODELS
@pytest.mark.parametrize(("rows", "batch", "steps"), [(9, 4, 5), (6, 2, 3), (5, 5, 2), (5, 8, 2)])
def test_reptile_takes_consecutive_mini_batches_and_wraps_around(
    model: LinearModel, rows: int, batch: int, steps: int
) -> None:
    """Step j takes the gradient of rows j b .. j b + b - 1 modulo S; a batch of S rows or more is the whole set."""
    task, params = random_task(model, 5, support=rows), model.init(5)
    phi = matrix(params)
    for j in range(steps):
        index = [i % rows for i in range(j * batch, j * batch + batch)] if batch < rows else list(range(rows))
        part = Batch(task.support.x[index], task.support.y[index])
        phi = phi - ALPHA * gradient(part, phi, model.bias)
    found, _ = reptile(model, steps, batch=batch).meta_grad(params, task)
    assert_same(found, weights(matrix(params) - phi, model.bias))


@MODELS
def test_reptile_with_adam_descends_as_torch_does(model: LinearModel) -> None:
    """theta - phi after steps of torch.optim.Adam(betas=(0, 0.999)) on the same mini-batches, from fresh moments."""
    task, params = random_task(model, 6, support=6), model.init(6)
    w = matrix(params).clone().requires_grad_()
    optimizer = torch.optim.Adam([w], ALPHA, betas=(0.0, 0.999))
    for j in range(4):
        index = [i % 6 for i in range(4 * j, 4 * j + 4)]
        part = Batch(task.support.x[index], task.support.y[index])
        w.grad = gradient(part, w.detach(), model.bias)
        optimizer.step()
    found, _ = reptile(model, 4, "adam", batch=4).meta_grad(params, task)
    assert_same(found, weights(matrix(params) - w.detach(), model.bias))


def test_reptile_trains_alike_whatever_normalises_the_queries() -> None:
    """`batch` and `joined` differ in the queries' statistics, of which theta - phi knows nothing."""
    x = torch.randn(10, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(10) % 2
    task, found = Task(Batch(x[:6], y[:6]), Batch(x[6:], y[6:])), []
    for norm_of in ("batch", "joined"):
        model = conv4((1, 16, 16), 2, filters=4, norm=norm_of, pool="stride", readout="mean")
        params = {k: p.double() for k, p in model.init(0).items()}
        found.append(Reptile(model, CrossEntropy(), "sgd", 0.1, 3, 3, 4).meta_grad(params, task))
    assert_same(found[0][0], found[1][0], rtol=0)
    assert found[0][1]["loss"] != found[1][1]["loss"]


# ---------------------------------------------------------------- iMAML


@MODELS
@pytest.mark.parametrize("prox", [0.5, 2.0])
@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_imaml_solves_the_implicit_system_at_the_proximal_minimiser(
    model: LinearModel, prox: float, damping: float, curvature: str
) -> None:
    """Differentiate H_S (phi - w_S) + lambda (phi - theta) = 0:  d phi / d theta = lambda (H_S + lambda I)^{-1}.

    So g = lambda (H_S + lambda I)^{-1} grad L_Q(phi*), which is (I + H_S / lambda)^{-1} grad L_Q(phi*); damping d adds
    d I to that matrix. H_S acts on all columns of w alike and has D distinct eigenvalues, so that D conjugate-gradient
    steps are exact. The outputs are linear in w, so that the Gauss-Newton matrix is H_S.
    """
    for seed in range(3):
        task, params = random_task(model, seed), model.init(seed)
        h = hessian(task.support, model.bias)
        phi = prox_minimiser(model, matrix(params), task, prox)
        b = gradient(task.query, phi, model.bias)
        identity = torch.eye(len(h), dtype=torch.float64)
        expected = torch.linalg.solve((1 + damping) * identity + h / prox, b)
        if damping == 0:
            assert_same(expected, prox * torch.linalg.solve(h + prox * identity, b))
        learner = replace(imaml(model, task, prox, cg_steps=len(h), damping=damping), curvature=curvature)
        found, metrics = learner.meta_grad(params, task)
        assert_same(found, weights(expected, model.bias))
        assert float(metrics["stationarity"]) < EXACT
        assert float(metrics["cg_residual"]) < EXACT


def test_one_conjugate_gradient_step_is_the_exact_line_search() -> None:
    """x_1 = (b'b / b'Ab) b, A = I + H_S / lambda: too few solver steps are visible in the residual and not hidden."""
    model, prox = LinearModel(4, 1), 1.0
    task, params = random_task(model, 7), model.init(7)
    a = torch.eye(4, dtype=torch.float64) + hessian(task.support, bias=False) / prox
    b = gradient(task.query, prox_minimiser(model, matrix(params), task, prox), bias=False)
    x = b * (b * b).sum() / (b * (a @ b)).sum()
    found, metrics = imaml(model, task, prox, cg_steps=1).meta_grad(params, task)
    assert_same(found["w"], x)
    assert_same(metrics["cg_residual"], torch.linalg.vector_norm(a @ x - b) / torch.linalg.vector_norm(b))
    assert float(metrics["cg_residual"]) > 0.01


@MODELS
def test_imaml_tends_to_the_plain_gradient_as_the_proximal_term_grows(model: LinearModel) -> None:
    """lambda -> infinity pins phi* to theta and A to I: g -> grad L_Q(theta), what FOMAML without steps would be.

    |phi* - theta| <= |grad L_S(theta)| / lambda and |A^{-1} b - b| <= |H_S| |b| / lambda bound the difference by
    (|H_Q| |grad L_S(theta)| + |H_S| |grad L_Q(phi*)|) / lambda: a hundred times larger lambda, a hundred times smaller.
    """
    task, params = random_task(model, 8), model.init(8)
    theta = matrix(params)
    plain = gradient(task.query, theta, model.bias)
    differences = []
    for prox in (1e3, 1e5, 1e7):
        found, _ = imaml(model, task, prox, cg_steps=4, steps=50).meta_grad(params, task)
        phi = prox_minimiser(model, theta, task, prox)
        drift = spectral(hessian(task.query, model.bias)) * torch.linalg.vector_norm(
            gradient(task.support, theta, model.bias)
        )
        solver = spectral(hessian(task.support, model.bias)) * torch.linalg.vector_norm(
            gradient(task.query, phi, model.bias)
        )
        differences.append(float(torch.linalg.vector_norm(matrix(found) - plain)))
        assert differences[-1] <= float(drift + solver) / prox
    for larger, smaller in pairwise(differences):
        assert larger / smaller == pytest.approx(100, rel=0.02)  # first order in 1 / lambda, the rest is of second


def spectral(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix, 2)


@MODELS
@pytest.mark.parametrize("steps", [1, 5])
def test_stationarity_is_the_gradient_left_over_the_gradient_at_the_start(model: LinearModel, steps: int) -> None:
    """|grad L_S(phi) + lambda (phi - theta)| / |grad L_S(theta)| at phi after `steps` steps of gradient descent.

    The descent of L_S + (lambda / 2) |phi - theta|^2 on a quadratic: with A = H_S + lambda I and its minimiser phi*,
    phi_k - phi* = (I - lr A)^k (theta - phi*), and the gradient left is A (phi_k - phi*).
    """
    prox = 0.7
    task, params = random_task(model, 9), model.init(9)
    theta = matrix(params)
    h = hessian(task.support, model.bias)
    identity = torch.eye(len(h), dtype=torch.float64)
    a = h + prox * identity
    algorithm = imaml(model, task, prox, cg_steps=len(h), steps=steps)
    best = prox_minimiser(model, theta, task, prox)
    phi = best + torch.linalg.matrix_power(identity - algorithm.inner_lr * a, steps) @ (theta - best)
    left = torch.linalg.vector_norm(a @ (phi - best))
    _, metrics = algorithm.meta_grad(params, task)
    assert set(metrics) == {"loss", "mse", "distance", "stationarity", "cg_residual", "cg_negative"}
    start = torch.linalg.vector_norm(gradient(task.support, theta, model.bias))
    assert_same(metrics["stationarity"], left / start)
    assert_same(metrics["distance"], torch.linalg.vector_norm(phi - theta))
    assert_same(metrics["loss"], loss(task.query, phi, model.bias))
    assert float(metrics["stationarity"]) > 1e-3  # the loop stopped early: the metric has something to say
    assert float(metrics["cg_negative"]) == 0  # I + H_S / lambda is positive definite


@dataclass(frozen=True)
class Squared:
    """f(x) = w^2 x. At x = 1 its loss (w^2 - y)^2 has the curvature 12 w^2 - 4 y: negative near 0 for y = 1."""

    features: int = 1

    def init(self, seed: int) -> Params:
        return {"w": torch.tensor([0.1], dtype=torch.float64)}

    def apply(self, params: Params, x: Tensor, stats: None = None) -> Tensor:
        return params["w"].square() * x

    def query_stats(self, params: Params, support_x: Tensor) -> None:
        return None

    def calibrate(self, params: Params, x: Tensor) -> Squared:
        return self


def test_negative_curvature_is_counted_task_by_task_and_leaves_the_first_order_gradient() -> None:
    """lambda = 1: A = 1 + 12 w^2 - 4 y is about -2.9 for y = 1 (phi is no minimiser) and about 5.1 for y = -1.

    The first task falls back to b = grad L_Q(phi), the second gets b / A; an inner rate of 1e-3 hardly moves w = 0.1.
    """
    algorithm = IMAML(Squared(), MeanSquaredError(), 1.0, 1e-3, 1, 1, 3, 0.0)
    one = torch.ones(1, 1, dtype=torch.float64)
    tasks = [Task(Batch(one, y * one), Batch(one, 2 * one)) for y in (1.0, -1.0)]
    params = algorithm.init(0)
    found, metrics = vmap(algorithm.meta_grad, in_dims=(None, 0))(params, stack_tasks(tasks))
    assert metrics["cg_negative"].tolist() == [1.0, 0.0]
    for i, y in enumerate((1.0, -1.0)):
        w = 0.1 - 1e-3 * 4 * 0.1 * (0.1**2 - y)  # the proximal term's gradient is 0 at the start
        b = 4 * w * (w**2 - 2)
        curvature = 1 + 12 * w**2 - 4 * y
        assert math.copysign(1, curvature) == -y
        assert float(found["w"][i, 0]) == pytest.approx(b if curvature < 0 else b / curvature, rel=EXACT)


def test_imaml_equals_differentiating_through_a_long_descent_on_a_small_network() -> None:
    """The implicit gradient at the proximal minimiser is the limit of the unrolled one, as the descent converges.

    lambda = 4 dominates the curvature of the loss at these weights, so that the inner problem is strongly convex around
    phi, and no kink of a ReLU lies at this minimiser (where one does, stationarity stays large). 200 steps contract by
    about (1 - 0.05 * 4)^200 = 1e-19, and as many conjugate-gradient steps as there are weights solve the system. What
    remains is rounding.
    """
    network = mlp((1,), 1, (6, 5), "none")
    params, task = double(network.init(0)), sine_task(0)
    lr, prox, steps = 0.05, 4.0, 200
    count = sum(p.numel() for p in params.values())
    algorithm = IMAML(network, MeanSquaredError(), prox, lr, steps, steps, count, 0.0)

    def support_loss(phi: Params) -> Tensor:
        return F.mse_loss(network.apply(phi, task.support.x), task.support.y)

    def unrolled(theta: Params) -> Tensor:
        phi = theta
        for _ in range(steps):
            slope = grad(support_loss)(phi)
            phi = {k: p - lr * (slope[k] + prox * (p - theta[k])) for k, p in phi.items()}
        return F.mse_loss(network.apply(phi, task.query.x), task.query.y)

    found, metrics = algorithm.meta_grad(params, task)
    assert float(metrics["stationarity"]) < 1e-12
    assert float(metrics["cg_negative"]) == 0
    expected = grad(unrolled)(params)
    assert float(norm(sub(found, expected)) / norm(expected)) < EXACT
    plain = MAML(network, MeanSquaredError(), 1e-12, 1, 1, True).meta_grad(params, task)[0]
    assert float(norm(sub(plain, expected)) / norm(expected)) > 0.05  # so that the agreement means something


# ---------------------------------------------------------------- over tasks


@pytest.mark.parametrize("name", ["maml", "fomaml", "reptile", "imaml"])
def test_the_task_axis_of_vmap_keeps_the_closed_forms_apart(name: str) -> None:
    """Each row of the vmapped meta-gradient is that of its own task, computed alone."""
    model = LinearModel(3, 2, bias=True)
    tasks = [random_task(model, seed) for seed in range(4)]
    algorithms: dict[str, Algorithm] = {
        "maml": maml(model, 2),
        "fomaml": maml(model, 2, first_order=True),
        "reptile": reptile(model, 2),
        "imaml": replace(imaml(model, tasks[0], 1.0, 4, steps=20), inner_lr=0.1),
    }
    params = model.init(0)
    found, metrics = vmap(algorithms[name].meta_grad, in_dims=(None, 0))(params, stack_tasks(tasks))
    for i, task in enumerate(tasks):
        alone, alone_metrics = algorithms[name].meta_grad(params, task)
        assert_same({k: g[i] for k, g in found.items()}, alone)
        for key, value in alone_metrics.items():
            torch.testing.assert_close(metrics[key][i], value, rtol=EXACT, atol=1e-12)
