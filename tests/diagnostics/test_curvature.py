"""Curvature of quadratic tasks and of a small network against dense Hessians."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.quadratic import EXACT, LinearModel, hessian, random_task, stack_tasks
from torch import Tensor
from torch.func import hessian as dense_hessian

from metarun.algorithms.imaml import IMAML
from metarun.algorithms.inner_loop import sgd
from metarun.algorithms.losses import CrossEntropy, MeanSquaredError
from metarun.algorithms.maml import MAML
from metarun.algorithms.reptile import Reptile
from metarun.compute.linalg import flatten, hessian_product, unflatten
from metarun.diagnostics.curvature import curvature_measures, is_gradient_descent
from metarun.diagnostics.lanczos import directions, extremes
from metarun.diagnostics.task_sample import TaskSample
from metarun.models.mlp import mlp
from metarun.types import Batch, GradientLearner, Params, Task, UpdateRule

MODEL = LinearModel(4, 2)
TASKS = [random_task(MODEL, seed) for seed in range(3)]


def imaml(prox: float = 0.7, rate: float = 0.1) -> IMAML:
    return IMAML(MODEL, MeanSquaredError(), prox, rate, 4, 4, cg_steps=4, cg_damping=0.0)


def maml(rate: float = 0.1) -> MAML:
    return MAML(MODEL, MeanSquaredError(), rate, 2, 2, first_order=False)


def reptile(rule: str, rate: float = 0.1, batch: int | None = None) -> Reptile:
    return Reptile(MODEL, MeanSquaredError(), rule, rate, 2, 2, batch)


def measured(learner: GradientLearner, chunk: int | None = None, steps: int = 8) -> dict[str, float]:
    return curvature_measures(learner, MODEL.init(0), TaskSample(stack_tasks(TASKS), chunk), steps)


def spectra(tasks: list[Task]) -> Tensor:
    """Eigenvalues of each task's support Hessian, ascending [T, D]; each is double, for two outputs."""
    return torch.stack([torch.linalg.eigvalsh(hessian(task.support, bias=False)) for task in tasks])


@pytest.mark.parametrize("chunk", [None, 1])
def test_curvature_of_quadratic_tasks_is_that_of_their_hessians(chunk: int | None) -> None:
    found, known = measured(maml(), chunk), spectra(TASKS)
    for where in ("theta", "phi"):
        assert found[f"hessian_max_{where}"] == pytest.approx(float(known[:, -1].mean()), rel=EXACT)
        assert found[f"hessian_min_{where}"] == pytest.approx(float(known[:, 0].mean()), rel=EXACT)
        assert found[f"hessian_residual_max_{where}"] < 1e-9
        assert found[f"hessian_residual_min_{where}"] < 1e-9
    assert found["rate_curvature"] == pytest.approx(0.1 * float(known[:, -1].mean()), rel=EXACT)
    assert found["rate_curvature_max"] == pytest.approx(0.1 * float(known[:, -1].max()), rel=EXACT)
    assert "prox_margin" not in found


def test_rate_curvature_has_the_proximal_term_and_the_margin_is_of_the_worst_task() -> None:
    found, known = measured(imaml()), spectra(TASKS)
    assert found["rate_curvature_max"] == pytest.approx(0.1 * (float(known[:, -1].max()) + 0.7), rel=EXACT)
    assert found["prox_margin"] == pytest.approx(0.7 + float(known[:, 0].min()), rel=EXACT)
    assert found["hessian_max_theta"] == pytest.approx(float(known[:, -1].mean()), rel=EXACT)


def test_rate_curvature_is_of_the_mini_batch_that_the_inner_loop_starts_with() -> None:
    cut = [Task(Batch(t.support.x[:3], t.support.y[:3]), t.query) for t in TASKS]
    found = measured(reptile("sgd", batch=3))
    assert found["rate_curvature"] == pytest.approx(0.1 * float(spectra(cut)[:, -1].mean()), rel=EXACT)
    assert found["hessian_max_theta"] == pytest.approx(float(spectra(TASKS)[:, -1].mean()), rel=EXACT)


def test_rules_that_are_not_gradient_descent_have_no_rate_to_hold_against_two() -> None:
    assert "rate_curvature" in measured(reptile("sgd"))
    found = measured(reptile("adam"))
    assert not [name for name in found if name.startswith("rate_")]
    assert "hessian_max_phi" in found


def momentum(lr: float) -> UpdateRule:
    """step_k = lr (g_k + 0.9 step_(k-1) / lr): linear in g, and the first step is lr g."""

    def step(g: Params, before: Params) -> tuple[Params, Params]:
        moved = {k: lr * g[k] + 0.9 * before[k] for k in g}
        return moved, moved

    return UpdateRule(lambda moved, _: {k: v * 0 for k, v in moved.items()}, step)


def test_momentum_and_a_rate_of_its_own_are_told_from_gradient_descent() -> None:
    class Other(MAML):
        inner_rule = momentum(0.1)  # type: ignore[assignment]

    class Halved(MAML):
        inner_rule = sgd(0.05)  # type: ignore[assignment]

    settings = (MODEL, MeanSquaredError(), 0.1, 2, 2, False)
    assert is_gradient_descent(MAML(*settings), MODEL.init(0))
    assert not is_gradient_descent(Other(*settings), MODEL.init(0))
    assert not is_gradient_descent(Halved(*settings), MODEL.init(0))


NETWORK = mlp((2,), 3, hidden=(5,), norm="none")
CLASSIFIER = MAML(NETWORK, CrossEntropy(), 0.5, 2, 2, first_order=False)


def labelled(seed: int) -> Task:
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(12, 2, generator=draw, dtype=torch.float64), torch.arange(12) % 3
    return Task(Batch(x, y), Batch(x + 0.1, y))


def support_hessian(params: Params, task: Task) -> Tensor:
    """Dense, [D, D], by differentiating the loss as a function of the flat vector twice."""

    def loss(vector: Tensor) -> Tensor:
        return CLASSIFIER.loss(NETWORK.apply(unflatten(vector, params), task.support.x), task.support.y)

    return dense_hessian(loss)(flatten(params))


def networks_params(dtype: torch.dtype) -> Params:
    return {k: v.to(dtype) for k, v in NETWORK.init(3).items()}


def test_curvature_of_a_network_is_that_of_its_dense_hessian_at_theta_and_at_phi() -> None:
    tasks, theta = [labelled(seed) for seed in range(2)], networks_params(torch.float64)
    found = curvature_measures(CLASSIFIER, theta, TaskSample(stack_tasks(tasks), None), steps=33)
    ends: dict[str, list[Tensor]] = {"theta": [], "phi": []}
    for task in tasks:
        phi = CLASSIFIER.adapt(theta, task.support).params
        for where, at in (("theta", theta), ("phi", phi)):
            ends[where].append(torch.linalg.eigvalsh(support_hessian(at, task)))
    for where, values in ends.items():
        known = torch.stack(values)
        assert float(known[:, 0].min()) < -0.01  # indefinite, as a network's is
        assert found[f"hessian_max_{where}"] == pytest.approx(float(known[:, -1].mean()), rel=EXACT)
        assert found[f"hessian_min_{where}"] == pytest.approx(float(known[:, 0].mean()), rel=1e-8)


@pytest.mark.parametrize("adapted", ["head", "block0"])
def test_the_inner_objective_is_curved_in_the_adapted_weights_alone(adapted: str) -> None:
    """Against the rows and columns of the dense Hessian; each part is convex where the whole is not."""
    tasks, theta = [labelled(seed) for seed in range(2)], networks_params(torch.float64)
    moves = flatten({k: torch.full_like(v, float(k.startswith(adapted))) for k, v in theta.items()}).bool()
    lr, prox = 0.5, 0.3
    learner = IMAML(NETWORK, CrossEntropy(), prox, lr, 2, 2, cg_steps=2, cg_damping=0.0, adapted=(adapted,))
    largest, smallest = [], []
    for task in tasks:
        phi = learner.adapt(theta, task.support).params
        at_theta, at_phi = (support_hessian(at, task)[moves][:, moves] for at in (theta, phi))
        largest.append(float(torch.linalg.eigvalsh(at_theta)[-1]))
        smallest.append(float(torch.linalg.eigvalsh(at_phi)[0]))
    found = curvature_measures(learner, theta, TaskSample(stack_tasks(tasks), None), steps=33)
    assert found["rate_curvature"] == pytest.approx(lr * (sum(largest) / 2 + prox), rel=EXACT)
    assert found["prox_margin"] == pytest.approx(prox + min(smallest), rel=1e-8)
    assert found["prox_margin"] > prox - 1e-9 > prox + found["hessian_min_phi"]


def test_an_eigenvalue_lies_within_the_residual_of_a_network_measured_with_few_steps() -> None:
    theta, task = networks_params(torch.float64), labelled(0)
    known = torch.linalg.eigvalsh(support_hessian(theta, task))

    def loss(at: Params) -> Tensor:
        return CLASSIFIER.loss(NETWORK.apply(at, task.support.x), task.support.y)

    for steps in (2, 4, 8):
        found = extremes(hessian_product(loss, theta), directions(theta, 1, 0)[0], steps)
        assert float((known - found.largest).abs().min()) <= float(found.residual_largest) + 1e-12
        assert float((known - found.smallest).abs().min()) <= float(found.residual_smallest) + 1e-12


def test_float32_agrees_with_float64_to_a_hundred_thousandth_of_the_largest_eigenvalue() -> None:
    double = [labelled(seed) for seed in range(2)]
    single = [Task(*(Batch(b.x.float(), b.y) for b in task)) for task in double]
    wide, narrow = (
        curvature_measures(CLASSIFIER, networks_params(dtype), TaskSample(stack_tasks(tasks), None), steps=20)
        for dtype, tasks in ((torch.float64, double), (torch.float32, single))
    )
    size = wide["hessian_max_theta"]
    for name, value in wide.items():
        scale = 1.0 if "residual" in name else size
        assert narrow[name] == pytest.approx(value, abs=1e-5 * scale), name


def test_an_inner_loop_that_diverged_is_no_error() -> None:
    found = measured(replace(maml(), inner_lr=1e200, inner_steps=3))
    assert found["hessian_max_theta"] == found["hessian_max_theta"]
    assert found["rate_curvature"] > 1e199
