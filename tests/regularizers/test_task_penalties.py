r"""Penalties across tasks: indices against their textbook definitions, gradients against finite differences through the
whole meta-gradient of a step, and coherence in closed form on quadratics (quadratic.py).

    d_i = (J_i - I)(theta - w_i),  J_i = (I - alpha H_i)^K;   u_i = d_i / |d_i|;   Omega = -|ubar|^2
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.quadratic import assert_same, hessian, loss, matrix, minimiser, weights
from helpers.trainers import DATA, MODEL, SPEC, trainer_of
from torch import Tensor
from torch.func import grad, vmap
from torch.func import hessian as second_derivative

import metarun
from metarun.algorithms.imaml import IMAML
from metarun.algorithms.losses import CrossEntropy, MeanSquaredError
from metarun.algorithms.maml import MAML
from metarun.algorithms.matchingnet import MatchingNet
from metarun.algorithms.protonet import ProtoNet
from metarun.algorithms.reptile import Reptile
from metarun.compute import device
from metarun.compute.linalg import axpy, dot
from metarun.errors import SettingError, UserError
from metarun.models.conv4 import conv4
from metarun.models.mlp import mlp
from metarun.regularizers.coherence import Coherence, direction, unit_vector
from metarun.regularizers.inequality import Inequality, task_losses
from metarun.training.experiment import assemble
from metarun.training.meta_gradient import build_meta_gradient
from metarun.types import Batch, Params, Task

ALPHA = 0.15
MSE = MeanSquaredError()
LEARNERS = {
    "maml": MAML(MODEL, MSE, ALPHA, 2, 2, False),
    "fomaml": MAML(MODEL, MSE, ALPHA, 2, 2, True),
    "reptile": Reptile(MODEL, MSE, "sgd", ALPHA, 2, 2, None),
    "reptile-adam": Reptile(MODEL, MSE, "adam", ALPHA, 2, 2, 3),
    "imaml": IMAML(MODEL, MSE, 1.0, ALPHA, 2, 2, 3, 0.0),
}
INDICES = {
    "theil": Inequality(),
    "ge(0)": Inequality("generalized_entropy", alpha=0.0),
    "ge(2)": Inequality("generalized_entropy", alpha=2.0),
    "ge(-1.5)": Inequality("generalized_entropy", alpha=-1.5),
    "atkinson(0.5)": Inequality("atkinson", epsilon=0.5),
    "atkinson(1)": Inequality("atkinson", epsilon=1.0),
    "atkinson(3)": Inequality("atkinson", epsilon=3.0),
    "gini": Inequality("gini"),
    "variance_of_logs": Inequality("variance_of_logs"),
}
EACH = pytest.mark.parametrize("index", INDICES.values(), ids=INDICES.keys())


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---------------------------------------------------------------- indices of inequality


def by_definition(x: list[float]) -> dict[str, float]:
    """Written out with sums over a list."""
    n, mean = len(x), math.fsum(x) / len(x)
    logs = [math.log(v) for v in x]
    geometric = math.exp(math.fsum(logs) / n)

    def entropy(a: float) -> float:
        return (math.fsum((v / mean) ** a for v in x) / n - 1) / (a * (a - 1))

    def equivalent(e: float) -> float:
        return (math.fsum(v ** (1 - e) for v in x) / n) ** (1 / (1 - e))

    return {
        "theil": math.fsum(v / mean * math.log(v / mean) for v in x) / n,
        "ge(0)": math.log(mean / geometric),
        "ge(2)": math.fsum((v - mean) ** 2 for v in x) / n / (2 * mean**2),
        "ge(-1.5)": entropy(-1.5),
        "atkinson(0.5)": 1 - equivalent(0.5) / mean,
        "atkinson(1)": 1 - geometric / mean,
        "atkinson(3)": 1 - equivalent(3) / mean,
        "gini": 2 * math.fsum((i + 1) * v for i, v in enumerate(sorted(x))) / (n * math.fsum(x)) - (n + 1) / n,
        "variance_of_logs": math.fsum(v * v for v in logs) / n - (math.fsum(logs) / n) ** 2,
    }


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0, 4.0], [0.3, 0.3, 7.0], [5.0, 1e-3], [2.0, 2.0]])
def test_each_index_is_its_definition(values: list[float]) -> None:
    expected = by_definition(values)
    for name, index in INDICES.items():
        assert float(index.index(column(*values))) == pytest.approx(expected[name], rel=1e-9, abs=1e-14), name


def test_known_values() -> None:
    """Gini of 1, 2, 3, 4 is 1/4; all the loss with one of M tasks has Theil ln M, Gini 1 - 1/M and Atkinson near 1."""
    assert float(INDICES["gini"].index(column(1, 2, 3, 4))) == pytest.approx(0.25, rel=1e-14)
    one = column(1, 0, 0, 0, 0)
    assert float(INDICES["theil"].index(one)) == pytest.approx(math.log(5), rel=1e-5)
    assert float(INDICES["gini"].index(one)) == pytest.approx(0.8, rel=1e-5)
    assert float(INDICES["atkinson(1)"].index(one)) == pytest.approx(1, abs=1e-5)


def test_theil_and_the_mean_log_deviation_are_limits_of_the_generalised_entropy() -> None:
    x = column(0.2, 1.3, 2.4, 0.9)
    for alpha in (0.0, 1.0):
        exact = Inequality("generalized_entropy", alpha=alpha).index(x)
        near = [Inequality("generalized_entropy", alpha=alpha + h).index(x) for h in (1e-4, -1e-4)]
        assert float(sum(near)) / 2 == pytest.approx(float(exact), rel=1e-6)
    assert_same(Inequality("generalized_entropy", alpha=1.0).index(x), INDICES["theil"].index(x))


def test_atkinson_at_one_is_the_limit() -> None:
    x = column(0.2, 1.3, 2.4, 0.9)
    near = [Inequality("atkinson", epsilon=1 + h).index(x) for h in (1e-4, -1e-4)]
    assert float(sum(near)) / 2 == pytest.approx(float(INDICES["atkinson(1)"].index(x)), rel=1e-6)


@EACH
def test_an_index_is_0_for_equal_losses_and_blind_to_scale_and_order(index: Inequality) -> None:
    x = column(0.2, 1.3, 2.4, 0.9)
    assert float(index.index(torch.full((6,), 0.37).double())) == pytest.approx(0, abs=1e-14)
    assert float(index.index(x)) > 0.01
    assert_same(index.index(1000 * x), index.index(x))
    assert_same(index.index(x[[2, 0, 3, 1]]), index.index(x))


@EACH
def test_a_transfer_from_a_high_loss_to_a_low_one_lowers_the_index(index: Inequality) -> None:
    assert index.index(column(0.5, 1.0, 2.0)) < index.index(column(0.4, 1.0, 2.1))


@EACH
@pytest.mark.parametrize("values", [(0.0, 0.0, 0.0), (0.0, 1.0, 2.0), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_of_0_and_equal_ones_have_finite_derivatives_of_both_orders(
    index: Inequality, values: tuple[float, ...], dtype: torch.dtype
) -> None:
    x = torch.tensor(values, dtype=dtype)
    assert index.index(x).isfinite()
    assert grad(index.index)(x).isfinite().all()
    assert second_derivative(index.index)(x).isfinite().all()


# ---------------------------------------------------------------- which losses


@pytest.mark.parametrize("learner", LEARNERS.values(), ids=LEARNERS.keys())
def test_the_losses_of_a_learner_with_an_inner_loop_are_those_at_theta(learner: Any) -> None:
    params, tasks = MODEL.init(0), drawn(4)
    for on in ("support", "query"):
        batch = getattr(tasks, on)
        expected = torch.stack([loss(Batch(batch.x[i], batch.y[i]), matrix(params), False) for i in range(4)])
        assert_same(task_losses(learner, params, tasks, on)[1], expected)


@pytest.mark.parametrize("norm", ["population", "joined", "support", "group", "none"])
@pytest.mark.parametrize("metric", ["protonet", "matchingnet"])
def test_the_losses_of_a_metric_learner_are_those_it_trains_on(metric: str, norm: str) -> None:
    learner, tasks = metric_learner(metric, norm), labelled(3)
    params = learner.init(0)
    params = {k: v.double() for k, v in params.items()}
    expected = vmap(learner.meta_grad, in_dims=(None, 0))(params, tasks)[1]["loss"]
    assert_same(task_losses(learner, params, tasks, "query")[1], expected)


@pytest.mark.parametrize("metric", ["protonet", "matchingnet"])
def test_a_metric_learner_trains_along_the_gradient_of_its_loss_and_inequality(metric: str) -> None:
    learner = metric_learner(metric, "population")
    trainer = replace(trainer_of(learner, penalty=Inequality(), weight=0.7))
    found = build_meta_gradient(trainer)
    params = {k: v.double() for k, v in learner.init(0).items()}
    tasks = labelled(3)

    def objective(at: Params) -> float:
        got = found(at, tasks)
        return float(got.metrics["loss"].mean() + got.penalty)

    assert_slope(found(params, tasks).mean, objective, params)


CONVOLUTIONAL = [Inequality(), Inequality(rows="support"), Coherence()]


@pytest.mark.parametrize("norm", ["batch", "support", "layer"])
@pytest.mark.parametrize("penalty", CONVOLUTIONAL, ids=["query", "support", "coherence"])
def test_gradients_are_right_on_a_convolutional_network(penalty: Any, norm: str) -> None:
    """Differentiating vmap from outside gives wrong second derivatives of batch normalisation behind a convolution.
    A ReLU's kink is within 1e-5 of these weights, so the differences are taken over less.
    """
    learner = MAML(conv4((1, 10, 10), 3, 4, norm, "stride", "mean"), CrossEntropy(), ALPHA, 2, 2, False)
    params, tasks = in_double(learner, 0.1), labelled(3, (1, 10, 10))
    found = grad(lambda at: penalty.across(learner, at, tasks))(params)
    assert float(dot(found, found)) > 1e-8
    assert_slope(found, lambda at: float(penalty.across(learner, at, tasks)), params, eps=1e-6)


def test_the_number_of_tasks_handled_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = MAML(conv4((1, 10, 10), 3, 2, "batch", "stride", "mean"), CrossEntropy(), ALPHA, 1, 1, False)
    params, tasks = in_double(learner, 0.1), labelled(3, (1, 10, 10))
    for penalty in (Inequality(), Coherence()):
        found = []
        for rows in (1, 10_000):
            monkeypatch.setattr(device, "CPU_ROWS_PER_CHUNK", rows)
            found.append(grad(lambda at, p=penalty: p.across(learner, at, tasks))(params))
        assert_same(*found)


# ---------------------------------------------------------------- through a step of training


PENALTIES = {**INDICES, "support": Inequality(rows="support"), "coherence": Coherence(), "two": Coherence(tasks=2)}


PAIRS = [(p, "maml") for p in PENALTIES] + [(p, x) for p in ("theil", "coherence") for x in LEARNERS if x != "maml"]


@pytest.mark.parametrize(("chosen", "algorithm"), PAIRS)
def test_what_a_penalty_adds_to_the_meta_gradient_is_its_finite_difference(chosen: str, algorithm: str) -> None:
    penalty, learner = PENALTIES[chosen], LEARNERS[algorithm]
    params, tasks = MODEL.init(0), drawn(4)
    with_it = build_meta_gradient(trainer_of(learner, settings=four_tasks(), penalty=penalty, weight=0.7))
    without = build_meta_gradient(trainer_of(learner, settings=four_tasks()))
    added = axpy(-1.0, without(params, tasks).mean, with_it(params, tasks).mean)
    assert float(dot(added, added)) > 1e-8
    assert_slope(added, lambda at: float(with_it(at, tasks).penalty), params)
    assert float(with_it(params, tasks).penalty) == pytest.approx(0.7 * float(penalty.across(learner, params, tasks)))


@pytest.mark.parametrize("penalty", [Inequality(), Coherence()], ids=["inequality", "coherence"])
def test_the_order_of_the_tasks_changes_nothing(penalty: Any) -> None:
    learner, params, tasks = LEARNERS["maml"], MODEL.init(0), drawn(4)
    shuffled = Task(*(Batch(b.x[[2, 0, 3, 1]], b.y[[2, 0, 3, 1]]) for b in tasks))
    found = [grad(lambda at, t=t: penalty.across(learner, at, t))(params) for t in (tasks, shuffled)]
    assert_same(found[0], found[1])
    assert_same(penalty.across(learner, params, tasks), penalty.across(learner, params, shuffled))


@pytest.mark.parametrize("kind", [Inequality, Coherence])
def test_a_limit_takes_the_first_tasks_of_a_step(kind: Any) -> None:
    learner, params, tasks = LEARNERS["maml"], MODEL.init(0), drawn(4)
    few = Task(*(Batch(b.x[:2], b.y[:2]) for b in tasks))
    assert torch.equal(kind(tasks=2).across(learner, params, tasks), kind().across(learner, params, few))


# ---------------------------------------------------------------- coherence


@pytest.mark.parametrize("steps", [1, 3])
def test_coherence_and_its_gradient_are_the_closed_form_on_quadratics(steps: int) -> None:
    learner, params, tasks = replace(LEARNERS["maml"], inner_steps=steps), MODEL.init(0), drawn(4)
    eye, units, slopes = torch.eye(3).double(), [], []
    for i in range(4):
        support = Batch(tasks.support.x[i], tasks.support.y[i])
        move = torch.linalg.matrix_power(eye - ALPHA * hessian(support, False), steps) - eye
        d = move @ (matrix(params) - minimiser(support, False))
        units.append(d / d.norm())
        slopes.append((eye - units[i] @ units[i].T) @ move / d.norm())
    mean = sum(units) / 4
    penalty = Coherence()
    assert_same(penalty.across(learner, params, tasks), -mean.square().sum())
    expected = -2 / 4 * sum(slope.T @ mean for slope in slopes)
    assert_same(grad(lambda at: penalty.across(learner, at, tasks))(params), weights(expected, False))


def test_coherence_is_minus_one_over_m_and_the_mean_cosine_of_pairs() -> None:
    learner, params, tasks = LEARNERS["maml"], MODEL.init(0), drawn(4)
    u = torch.stack([direction(learner, params, Batch(tasks.support.x[i], tasks.support.y[i]), None) for i in range(4)])
    cosines = [float(u[i] @ u[j]) for i in range(4) for j in range(i)]
    expected = -(1 / 4 + 3 / 4 * sum(cosines) / 6)
    assert float(Coherence().across(learner, params, tasks)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("learner", LEARNERS.values(), ids=LEARNERS.keys())
def test_identical_tasks_give_minus_one_and_no_gradient(learner: Any) -> None:
    params, tasks = MODEL.init(0), drawn(1)
    same = Task(*(Batch(b.x.expand(3, *b.x.shape[1:]), b.y.expand(3, *b.y.shape[1:])) for b in tasks))
    assert float(Coherence().across(learner, params, same)) == pytest.approx(-1, abs=1e-12)
    slope = grad(lambda at: Coherence().across(learner, at, same))(params)
    assert_same(axpy(1.0, params, slope), params)


def test_opposite_directions_cancel() -> None:
    """theta = 0 and targets y and -y: one gradient is minus the other."""
    tasks = drawn(1)
    x, y = tasks.support
    pair = Batch(x.expand(2, *x.shape[1:]), torch.cat([y, -y]))
    params = {"w": torch.zeros(3, 1).double()}
    value = Coherence().across(replace(LEARNERS["maml"], inner_steps=1), params, Task(pair, pair))
    assert float(value) == pytest.approx(0, abs=1e-14)


def test_a_task_that_does_not_move_has_no_direction_and_finite_derivatives() -> None:
    """At the minimiser of a task that a line fits exactly, phi = theta: it counts as 0 in the mean."""
    params, tasks = MODEL.init(0), drawn(2)
    tasks.support.y[0] = tasks.support.x[0] @ matrix(params)
    learner = LEARNERS["maml"]
    assert float(Coherence().across(learner, params, tasks)) == pytest.approx(-1 / 4, rel=1e-12)
    slope = grad(lambda at: Coherence().across(learner, at, tasks))(params)
    assert slope["w"].isfinite().all()


def test_the_unit_of_zero_is_zero_with_finite_derivatives_of_both_orders() -> None:
    for d in (torch.zeros(3).double(), torch.zeros(3)):
        assert torch.equal(unit_vector(d), d)
        assert torch.equal(grad(lambda d: unit_vector(d).sum())(d), torch.zeros_like(d))
        assert second_derivative(lambda d: unit_vector(d).sum())(d).isfinite().all()


def test_only_the_named_tensors_are_compared() -> None:
    network = mlp((2,), 1, (4,), "none")
    learner = MAML(network, MSE, ALPHA, 1, 1, False, ("head",))
    params = {k: v.double() + 0.1 for k, v in learner.init(0).items()}
    x = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0)).double()
    tasks = Task(Batch(x, x[..., :1].sin()), Batch(x, x[..., :1].sin()))
    assert float(Coherence(targets=("block0",)).across(learner, params, tasks)) == 0  # the inner loop leaves it alone
    whole, head = (Coherence(targets=t).across(learner, params, tasks) for t in (None, ("head",)))
    assert_same(whole, head)
    assert float(whole) < -1 / 3
    assert float(Coherence(targets=("nothing",)).across(learner, params, tasks)) == 0


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reg=inequality", "reg.measure=hoover"], r"^reg\.measure=hoover: choices: theil, .*variance_of_logs$"),
        (["reg=inequality", "reg.epsilon=0"], r"^reg\.epsilon=0\.0: must be above 0"),
        (["reg=inequality", "reg.rows=test"], r"^reg\.rows=test: choices: support, query$"),
        (["reg=inequality", "reg.tasks=1"], r"^reg\.tasks=1: must be at least 2"),
        (["reg=coherence", "reg.tasks=1"], r"^reg\.tasks=1: must be at least 2"),
        (["reg=inequality", "reg.where=inner"], r"^reg\.where=inner: this one has choices: outer$"),
        (["reg=coherence", "reg.where=both"], r"^reg\.where=both: this one has choices: outer$"),
        (["reg=coherence", "train.tasks=1"], r"^train\.tasks=1: must be at least 2: reg=coherence compares"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises((SettingError, UserError), match=message):
        assemble(metarun.compose(overrides))


def test_coherence_is_refused_without_an_inner_loop() -> None:
    assert Coherence().objection(LEARNERS["reptile"]) is None
    assert "no inner loop" in str(Coherence().objection(metric_learner("protonet", "none")))


# ---------------------------------------------------------------- helpers


def drawn(count: int) -> Task:
    return DATA.episodes("train", 0, 0, range(count), SPEC)


def four_tasks() -> Any:
    return replace(trainer_of(LEARNERS["maml"]).settings, tasks=4)


def metric_learner(name: str, norm: str) -> Any:
    network = mlp((4,), None, (5,), norm)
    if name == "protonet":
        return ProtoNet(network, CrossEntropy(), 3, "euclidean", 1.0)
    return MatchingNet(network, CrossEntropy(), 3, "cosine", 0.5, False, 1)


def in_double(learner: Any, away: float) -> Params:
    """Initial weights, moved away from zero."""
    draw = torch.Generator().manual_seed(7)
    return {k: v.double() + away * torch.randn(v.shape, generator=draw).double() for k, v in learner.init(0).items()}


def labelled(count: int, inputs: tuple[int, ...] = (4,)) -> Task:
    draw = torch.Generator().manual_seed(5)

    def batch(per_class: int) -> Batch:
        y = torch.arange(3).repeat(per_class)
        return Batch(torch.randn(count, len(y), *inputs, generator=draw).double(), y.expand(count, -1).contiguous())

    return Task(batch(2), batch(3))


def assert_slope(gradient: Params, value: Any, at: Params, eps: float = 1e-5) -> None:
    """Along three random directions, by central differences."""
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        along = {k: torch.randn(v.shape, generator=draw).double() for k, v in at.items()}
        slope = (value(axpy(eps, along, at)) - value(axpy(-eps, along, at))) / (2 * eps)
        assert float(dot(gradient, along)) == pytest.approx(slope, rel=1e-6, abs=1e-8)
