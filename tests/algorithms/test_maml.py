"""What Meta-SGD and MAML++ add to MAML: learned rates, a multi-step loss, first order first; against central
differences of the loss that training descends, written out here without metarun's inner loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.quadratic import LinearModel, assert_same, gradient, matrix, random_task, stack_tasks, weights

import metarun
from metarun.algorithms.inner_loop import is_adapted
from metarun.algorithms.losses import MeanSquaredError
from metarun.algorithms.maml import MAML, anneal_weights
from metarun.compute.task_axis import map_tasks
from metarun.errors import UserError
from metarun.models.mlp import mlp
from metarun.training.experiment import assemble
from metarun.types import RATES, Batch, Params, Task

TINY = [
    *("train.tasks=3", "val.tasks=2", "test.tasks=3", "test.steps=2", "device.compile=false", "report=false"),
    *("train.checkpoint_every=1", "diagnostics=off", "device.precision=float64"),
]
MODEL = mlp((1,), 1, [5, 4], "none")
TASK = Task(*(Batch(b.x[:, :1], b.y[:, :1]) for b in random_task(LinearModel(3, 1), 0)))
LEARNER = MAML(
    MODEL, MeanSquaredError(), inner_lr=0.0625, inner_steps=3, test_inner_steps=3, first_order=False
)  # a rate that single precision holds exactly


def doubles(learner: MAML) -> Params:
    """Away from where training begins, so that no two rates are the same."""
    draw = torch.Generator().manual_seed(1)
    params = {k: v.double() for k, v in learner.init(0).items()}
    return {k: v + 0.02 * torch.rand(v.shape, generator=draw, dtype=v.dtype) for k, v in params.items()}


def losses(learner: MAML, theta: Params, slopes: list[Params] | None = None) -> list[torch.Tensor]:
    """L^Q(phi_k), k = 1 .. T, by plain steps; with the given support gradients as constants, if there are any."""
    phi, found = {k: v for k, v in theta.items() if not k.startswith(RATES)}, []
    for k in range(learner.inner_steps):
        leaves = {n: v.detach().requires_grad_() for n, v in phi.items()}
        support = learner.loss(MODEL.apply(leaves, TASK.support.x), TASK.support.y)
        g = slopes[k] if slopes else dict(zip(leaves, torch.autograd.grad(support, [*leaves.values()]), strict=True))
        for name in phi:
            rate = theta.get(RATES + name, torch.tensor(learner.inner_lr))
            rate = rate[k] if learner.learned_rates == "step" else rate
            if is_adapted(name, learner.inner_rule):
                phi = phi | {name: phi[name] - rate * g[name]}
        found.append(learner.loss(MODEL.apply(phi, TASK.query.x), TASK.query.y))
    return found


def support_gradients(learner: MAML, theta: Params) -> list[Params]:
    met: list[Params] = []
    phi = {k: v for k, v in theta.items() if not k.startswith(RATES)}
    for k in range(learner.inner_steps):
        leaves = {n: v.clone().requires_grad_() for n, v in phi.items()}
        support = learner.loss(MODEL.apply(leaves, TASK.support.x), TASK.support.y)
        met.append(dict(zip(leaves, torch.autograd.grad(support, [*leaves.values()]), strict=True)))
        rates = {n: theta.get(RATES + n, torch.tensor(learner.inner_lr)) for n in phi}
        rates = {n: r[k] if learner.learned_rates == "step" else r for n, r in rates.items()}
        phi = {n: v - (rates[n] * met[-1][n] if is_adapted(n, learner.inner_rule) else 0) for n, v in phi.items()}
    return met


def differences(function: Callable[[Params], torch.Tensor], at: Params, h: float = 1e-6) -> Params:
    """Central differences, entry by entry."""
    found = {}
    for name, value in at.items():
        flat = torch.zeros(value.numel(), dtype=torch.float64)
        for i in range(value.numel()):
            step = torch.zeros(value.numel(), dtype=torch.float64)
            step[i] = h
            up, down = (function(at | {name: value + s * step.view(value.shape)}) for s in (1, -1))
            flat[i] = (up - down) / (2 * h)
        found[name] = flat.view(value.shape)
    return found


VARIANTS = pytest.mark.parametrize(
    "settings",
    [
        {"learned_rates": "weight"},
        {"learned_rates": "step"},
        {"learned_rates": "weight", "adapted": ("head",)},
        {"step_weights": (0.2, 0.3, 0.5)},
        {"learned_rates": "step", "step_weights": (0.0, 0.3, 0.7)},
    ],
    ids=str,
)


@VARIANTS
def test_the_meta_gradient_is_that_of_the_weighted_query_losses(settings: dict[str, Any]) -> None:
    learner = replace(LEARNER, **settings)
    theta, w = doubles(learner), settings.get("step_weights", (0.0, 0.0, 1.0))

    def objective(at: Params) -> torch.Tensor:
        return sum((a * b for a, b in zip(w, losses(learner, at), strict=True)), torch.zeros(()))

    found, metrics = learner.meta_grad(theta, TASK)
    assert set(found) == set(theta)
    assert_same(found, differences(objective, theta), rtol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(float(losses(learner, theta)[-1]))


@VARIANTS
def test_first_order_takes_the_support_gradients_for_constants(settings: dict[str, Any]) -> None:
    learner = replace(LEARNER, first_order=True, **settings)
    theta, w = doubles(learner), settings.get("step_weights", (0.0, 0.0, 1.0))
    slopes = support_gradients(learner, theta)

    def objective(at: Params) -> torch.Tensor:
        return sum((a * b for a, b in zip(w, losses(learner, at, slopes), strict=True)), torch.zeros(()))

    assert_same(learner.meta_grad(theta, TASK)[0], differences(objective, theta), rtol=1e-6)


def test_a_step_of_meta_sgd_on_a_quadratic_task_has_the_gradient_of_its_closed_form() -> None:
    """phi = theta - a * g_S(theta), so d L_Q / d a = - g_S * g_Q(phi), elementwise."""
    model = LinearModel(3, 2, bias=True)
    task, params = random_task(model, 3), model.init(0)
    learner = MAML(model, MeanSquaredError(), 0.1, 1, 1, False, learned_rates="weight")
    theta = learner.init(0)
    slope = gradient(task.support, matrix(params), bias=True)
    phi = matrix(params) - 0.1 * slope
    expected = weights(-slope * gradient(task.query, phi, bias=True), bias=True)
    found, _ = learner.meta_grad(theta, task)
    assert_same({k: found[RATES + k] for k in expected}, expected)


def test_rates_that_have_not_moved_leave_maml_as_it_is() -> None:
    theta = {k: v.double() for k, v in LEARNER.init(0).items()}
    plain, _ = LEARNER.meta_grad(theta, TASK)
    for kind in ("weight", "step"):
        learner = replace(LEARNER, learned_rates=kind)
        found, _ = learner.meta_grad({k: v.double() for k, v in learner.init(0).items()}, TASK)
        assert_same({k: found[k] for k in plain}, plain)


@pytest.mark.parametrize("metric", ["adaptive", "plain"])
@pytest.mark.parametrize("reg", ["l1", "group"])
@pytest.mark.parametrize("algo", ["metasgd", "mamlpp"])
def test_a_proximal_step_by_learned_rates_that_have_not_moved_is_mamls(algo: str, reg: str, metric: str) -> None:
    """And its gradient is finite, also from shifts that are all 0. Was: a threshold of 0, or NaN."""
    settings = ["reg.where=inner", "reg.weight=0.2", "reg.method=prox", f"reg.metric={metric}", "model.hidden=[5,4]"]
    settings += ["algo.inner_lr=0.0625", "algo.inner_steps=2", "algo.test_inner_steps=2"]
    learner, maml, free = (
        assemble(
            metarun.compose([f"algo={name}", f"reg={kind}", *(s for s in settings if kind != "none" or "reg" not in s)])
        ).algorithm
        for name, kind in ((algo, reg), ("maml", reg), ("maml", "none"))
    )
    theta = {k: v.double() for k, v in learner.init(0).items()}
    weights = {k: v for k, v in theta.items() if not k.startswith(RATES)}
    found, expected, without = (
        x.adapt(start, TASK.support).params for x, start in ((learner, theta), (maml, weights), (free, weights))
    )
    assert_same({k: found[k] for k in expected}, expected)
    assert max(float((expected[k] - without[k]).abs().max()) for k in expected) > 1e-3
    assert all(g.isfinite().all() for g in learner.meta_grad(theta, TASK)[0].values())


def test_the_last_step_s_rates_hold_beyond_the_trained_steps() -> None:
    learner = replace(LEARNER, learned_rates="step")
    theta = doubles(learner)
    more = theta | {k: torch.cat([v, v[-1:], v[-1:]]) for k, v in theta.items() if k.startswith(RATES)}
    short, long = ([*learner.adaptations(t, TASK.support, 5)][-1].params for t in (theta, more))
    assert_same({k: short[k] for k in MODEL.init(0)}, {k: long[k] for k in MODEL.init(0)}, rtol=0)


def test_vmap_over_tasks_is_a_loop_over_tasks() -> None:
    learner = replace(LEARNER, learned_rates="step", step_weights=(0.2, 0.3, 0.5))
    theta = doubles(learner)
    tasks = stack_tasks([TASK, Task(TASK.query, TASK.support)]) if TASK.query.x.shape == TASK.support.x.shape else None
    tasks = tasks or stack_tasks([TASK, TASK])
    for first_order in (False, True):
        at = replace(learner, first_order=first_order)
        grads, _ = map_tasks(at.meta_grad, 2, None)(theta, tasks)
        for i in range(2):
            one, _ = at.meta_grad(theta, Task(*(Batch(b.x[i], b.y[i]) for b in tasks)))
            assert_same({k: v[i] for k, v in grads.items()}, one)


def test_the_weights_of_earlier_steps_fall_in_ten_stages_and_go() -> None:
    """As the released code: 1/T less 1/(T E) an epoch of E = 10, at least 0.03/T; the last takes the rest."""
    for step in range(0, 1000, 50):
        epoch = step // 100
        earlier = max(1 / 5 - epoch / (5 * 10), 0.03 / 5)
        assert anneal_weights(step, 1000, 5) == pytest.approx((*[earlier] * 4, 1 - 4 * earlier))
    assert anneal_weights(1000, 1000, 5) is None
    assert anneal_weights(0, 0, 5) is None
    assert len({anneal_weights(step, 1000, 5) for step in range(1000)}) == 10


def test_first_order_until_changes_the_gradient_at_its_step(tmp_path: Path) -> None:
    """Two runs that differ in nothing else part at that step."""

    def trained(name: str, *overrides: str) -> Params:
        return metarun.run(metarun.compose([*TINY, "algo=maml", *overrides]), tmp_path / name).params

    steps = [trained(f"{n}", f"train.steps={n}", "algo.first_order_until=2", "algo.inner_lr=0.1") for n in (2, 3)]
    first = trained("first", "train.steps=2", "algo.first_order=true", "algo.inner_lr=0.1")
    assert_same(steps[0], first, rtol=0)
    third = trained("third", "train.steps=3", "algo.first_order=true", "algo.inner_lr=0.1")
    assert not all(torch.equal(steps[1][k], third[k]) for k in third)


@pytest.mark.parametrize("algo", ["metasgd", "mamlpp"])
def test_rates_are_trained_with_the_weights(algo: str, tmp_path: Path) -> None:
    config = metarun.compose([*TINY, f"algo={algo}", "train.steps=3", "algo.inner_lr=0.02"])
    rates = {k: v for k, v in metarun.run(config, tmp_path).params.items() if k.startswith(RATES)}
    assert rates
    assert all((v != 0.02).any() for v in rates.values())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algo.learned_rates=some"], r"algo\.learned_rates=some: choices: none, weight, step, curvature"),
        (["algo.step_weights=[1,1]"], r"algo\.step_weights=\[1\.0, 1\.0\]: must be one finite number"),
        (["algo.step_weights=[1]", "algo.multi_step_until=5"], r"cannot be set together with multi_step_until"),
        (
            ["algo.inner_checkpoint=true", "algo.first_order_until=5"],
            r"algo\.inner_checkpoint=True: needs the loss",
        ),
        (["algo.first_order_until=-1"], r"algo\.first_order_until=-1: must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        metarun.build_algorithm(metarun.compose(overrides))
