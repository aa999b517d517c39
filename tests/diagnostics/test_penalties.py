"""Measures of penalties against quadratic tasks whose every derivative is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from helpers.quadratic import EXACT, LinearModel, gradient, loss, matrix, random_task, stack_tasks, weights
from torch import Tensor

from metarun.algorithms.imaml import IMAML
from metarun.algorithms.losses import CrossEntropy, MeanSquaredError
from metarun.algorithms.maml import MAML
from metarun.algorithms.objective import Regularization, Schedule, Term
from metarun.algorithms.penalty_protocols import Adaptation
from metarun.algorithms.protonet import ProtoNet
from metarun.algorithms.reptile import Reptile
from metarun.diagnostics.penalties import share
from metarun.diagnostics.step import StepMeasures, Values, update_measures
from metarun.models.mlp import mlp
from metarun.regularizers.l1 import L1, soft_threshold
from metarun.regularizers.l2 import L2
from metarun.regularizers.prox_l2 import ProxL2
from metarun.types import Batch, Params, Task

MODEL = LinearModel(3, 2)
RATE = 0.2
TASKS = [random_task(MODEL, seed) for seed in range(4)]
MANY = stack_tasks(TASKS)
FOLLOWED = TASKS[:3]
W = matrix(MODEL.init(0)).clone()
W[0, 1] = 0.0


def term(penalty: Any, weight: float = 0.3, where: str = "outer", name: str = "p", **schedule: Any) -> Term:
    return Term(name, penalty, Schedule(weight, **schedule), where)


def maml(terms: list[Term], steps: int = 2, first_order: bool = False, **more: Any) -> MAML:
    mse = MeanSquaredError()
    return MAML(MODEL, mse, RATE, steps, steps, first_order, regularization=Regularization(tuple(terms)), **more)


def measured(learner: Any, params: Params, terms: list[Term], tasks: Task = MANY, chunk: int | None = None) -> Values:
    """The measures of a step: three of its four tasks are followed."""
    regularization = Regularization(tuple(terms))
    each = [learner.meta_grad(params, Task(*(Batch(b.x[i], b.y[i]) for b in tasks)))[0] for i in range(len(tasks[0].x))]
    grads = {k: torch.stack([g[k] for g in each]) for k in params}
    return StepMeasures(learner, 3, chunk, regularization)(params, grads, tasks)


def average(values: list[Tensor]) -> float:
    return float(torch.stack(values).mean())


def descended(
    task: Task, w: Tensor, steps: int, pull: float = 0.0, threshold: float = 0.0, decay: float = 0.0
) -> Tensor:
    """phi after steps on L^S + (pull/2) |phi - w|^2 + (decay/2) |phi|^2, each followed by a soft threshold if any."""
    phi = w
    for _ in range(steps):
        phi = phi - RATE * (gradient(task.support, phi, False) + pull * (phi - w) + decay * phi)
        phi = soft_threshold(phi, threshold) if threshold else phi
    return phi


# ---------------------------------------------------------------- outer terms


@pytest.mark.parametrize("method", ["prox", "subgradient"])
def test_values_and_shares_of_penalties_on_theta_are_those_by_hand(method: str) -> None:
    """|w grad|w|_1| = w sqrt(numbers that are not 0), grad (w/2)|w|^2 = w theta, against the mean of all four tasks."""
    terms = [term(L1(method), 0.3, name="l1"), term(L2(), 0.7, name="l2")]
    learner = maml(terms)
    found = measured(learner, {"w": W}, terms)
    data = torch.stack([learner.meta_grad({"w": W}, t)[0]["w"] for t in TASKS]).mean(0).norm()
    l1, l2 = 0.3 * 5**0.5, 0.7 * float(W.norm())
    whole = float(data) + l1 + l2
    assert found["penalty/l1"] == pytest.approx(0.3 * float(W.abs().sum()), rel=EXACT)
    assert found["penalty/l2"] == pytest.approx(0.35 * float(W.square().sum()), rel=EXACT)
    assert found["penalty_share/l1"] == pytest.approx(l1 / whole, rel=EXACT)
    assert found["penalty_share/l2"] == pytest.approx(l2 / whole, rel=EXACT)
    assert found["sparsity/zeros"] == pytest.approx(1 / 6)


def test_what_a_penalty_on_adaptation_adds_is_the_finite_difference_of_its_mean() -> None:
    """d/dtheta mean_i (w/2) |phi_i(theta) - theta|^2 through both steps, the data's by differences as well; an inner
    penalty is a part of both."""

    def penalty(w: Tensor) -> float:
        return average([0.25 * (descended(t, w, 2, decay=0.9) - w).square().sum() for t in FOLLOWED])

    def data(w: Tensor) -> float:
        return average([loss(t.query, descended(t, w, 2, decay=0.9), False) for t in FOLLOWED])

    def slope(function: Any, eps: float = 1e-5) -> float:
        moves = eps * torch.eye(6).double().view(6, 3, 2)
        return float(torch.tensor([(function(W + m) - function(W - m)) / (2 * eps) for m in moves]).norm())

    terms = [term(ProxL2(), 0.5, name="prox_l2"), term(L2(), 0.1, name="l2"), term(L2(), 0.9, "inner", "decay")]
    found = measured(maml(terms), {"w": W}, terms)
    assert found["penalty/prox_l2"] == pytest.approx(penalty(W), rel=EXACT)
    lengths = [slope(penalty), slope(data), 0.1 * float(W.norm())]
    assert found["penalty_share/prox_l2"] == pytest.approx(lengths[0] / sum(lengths), rel=1e-6)
    assert found["penalty_share/l2"] == pytest.approx(lengths[2] / sum(lengths), rel=1e-6)


@dataclass(frozen=True)
class Offset:
    """Omega = <phi, phi> / 2 + <theta, theta>: the partial derivatives are phi and 2 theta."""

    def between(self, at: Adaptation) -> Tensor:
        return at.phi["w"].square().sum() / 2 + at.theta["w"].square().sum()


def test_first_order_learners_count_both_partial_derivatives() -> None:
    """One on phi - theta alone, which both cancel, has no share with them."""
    reptile = Reptile(MODEL, MeanSquaredError(), "sgd", RATE, 2, 2, None)
    phis = [descended(t, W, 2) for t in FOLLOWED]
    added = 0.4 * float(torch.stack([phi + 2 * W for phi in phis]).mean(0).norm())
    for learner, part in (
        (maml([], first_order=True), [gradient(t.query, phi, False) for t, phi in zip(FOLLOWED, phis, strict=True)]),
        (reptile, [W - phi for phi in phis]),
    ):
        terms = [term(Offset(), 0.4)]
        found = measured(replace(learner, regularization=Regularization(tuple(terms))), {"w": W}, terms)
        data = float(torch.stack(part).mean(0).norm())
        assert found["penalty_share/p"] == pytest.approx(added / (added + data), rel=EXACT)
        terms = [term(ProxL2(), 0.4)]
        found = measured(replace(learner, regularization=Regularization(tuple(terms))), {"w": W}, terms)
        assert found["penalty/p"] > 0
        assert found["penalty_share/p"] == pytest.approx(0, abs=1e-12)


@dataclass(frozen=True)
class Spread:
    """Omega of tasks together: the norm of theta times their number."""

    def across(self, learner: Any, params: Params, tasks: Task) -> Tensor:
        return len(tasks.support.x) * params["w"].norm()


def test_a_penalty_of_tasks_together_is_that_of_the_followed_ones() -> None:
    terms = [term(Spread(), 0.5)]
    learner = maml(terms)
    found = measured(learner, {"w": W}, terms)
    data = float(torch.stack([learner.meta_grad({"w": W}, t)[0]["w"] for t in TASKS]).mean(0).norm())
    assert found["penalty/p"] == pytest.approx(1.5 * float(W.norm()), rel=EXACT)
    assert found["penalty_share/p"] == pytest.approx(1.5 / (1.5 + data), rel=EXACT)


def test_a_learner_without_an_inner_loop_has_those_of_its_weights() -> None:
    model = mlp((2,), None, (4,), "none")
    learner = ProtoNet(model, CrossEntropy(), 2, "euclidean", 1.0)
    draw = torch.Generator().manual_seed(0)
    batch = Batch(torch.randn(4, 6, 2, generator=draw), torch.arange(6).remainder(2).expand(4, 6))
    params = model.init(0)
    found = measured(learner, params, [term(L1(), 0.1, name="l1")], Task(batch, batch))
    assert found["penalty/l1"] == pytest.approx(0.1 * float(params["block0.weight"].abs().sum()), rel=1e-6)
    assert 0 < found["penalty_share/l1"] < 1
    assert found["sparsity/zeros"] == found["sparsity/block0"] == 0


# ---------------------------------------------------------------- inner terms


def test_values_shares_and_zeros_of_inner_penalties_are_those_where_the_inner_loop_ends() -> None:
    """Of a proximal term on L1, which shrinks each step by rate times weight, beside one on the distance."""
    terms = [term(L1(), 0.8, "inner", "l1"), term(ProxL2(), 0.5, "inner", "prox_l2")]
    found = measured(maml(terms), {"w": W}, terms)
    phis = [descended(t, W, 2, pull=0.5, threshold=RATE * 0.8) for t in FOLLOWED]
    assert any((phi == 0).any() for phi in phis)
    l1 = [0.8 * (phi != 0).double().sum().sqrt() for phi in phis]
    away = [0.5 * (phi - W).norm() for phi in phis]
    data = [gradient(t.support, phi, False).norm() for t, phi in zip(FOLLOWED, phis, strict=True)]
    shares = [(a / (a + b + c), b / (a + b + c)) for a, b, c in zip(l1, away, data, strict=True)]
    assert found["penalty/l1"] == pytest.approx(average([0.8 * phi.abs().sum() for phi in phis]), rel=EXACT)
    assert found["penalty/prox_l2"] == pytest.approx(average([(phi - W).square().sum() / 4 for phi in phis]), rel=EXACT)
    assert found["penalty_share/l1"] == pytest.approx(average([s for s, _ in shares]), rel=EXACT)
    assert found["penalty_share/prox_l2"] == pytest.approx(average([s for _, s in shares]), rel=EXACT)
    zero = average([(phi == 0).double().mean() for phi in phis])
    assert found["sparsity_adapted/zeros"] == pytest.approx(zero, rel=1e-6)
    assert "sparsity/zeros" not in found


def test_the_proximal_term_of_the_learner_itself_counts_in_the_whole() -> None:
    terms = [term(L2(), 0.4, "inner", "l2")]
    learner = IMAML(MODEL, MeanSquaredError(), 1.5, RATE, 3, 3, 4, 0.0, Regularization(tuple(terms)))
    found = measured(learner, {"w": W}, terms)
    shares = []
    for t in FOLLOWED:
        phi = W
        for _ in range(3):
            phi = phi - RATE * (gradient(t.support, phi, False) + 1.5 * (phi - W) + 0.4 * phi)
        own = 0.4 * phi.norm()
        shares.append(own / (own + 1.5 * (phi - W).norm() + gradient(t.support, phi, False).norm()))
    assert found["penalty_share/l2"] == pytest.approx(average(shares), rel=EXACT)


def test_only_what_the_inner_loop_moves_counts_inside() -> None:
    model = LinearModel(3, 2, bias=True)
    task, w = random_task(model, 5), matrix(model.init(3))
    terms = [term(L2(), 0.4, "inner", "l2")]
    learner = replace(maml(terms, steps=1, adapted=("b",)), model=model)
    found = measured(learner, weights(w, True), terms, stack_tasks([task]))
    bias = w[-1] - RATE * (gradient(task.support, w, True)[-1] + 0.4 * w[-1])
    phi = torch.cat([w[:-1], bias[None]])
    own = 0.4 * float(bias.norm())
    assert found["penalty/l2"] == pytest.approx(0.2 * float(phi.square().sum()), rel=EXACT)
    assert found["penalty_share/l2"] == pytest.approx(
        own / (own + float(gradient(task.support, phi, True)[-1].norm())), rel=EXACT
    )


def test_a_term_in_both_places_has_numbers_for_each() -> None:
    terms = [term(L1("subgradient"), 0.3, "both", "l1")]
    found = measured(maml(terms), {"w": W}, terms)
    assert found["penalty/l1.outer"] == pytest.approx(0.3 * float(W.abs().sum()), rel=EXACT)
    assert found["penalty/l1.inner"] != found["penalty/l1.outer"]
    assert {"penalty_share/l1.inner", "penalty_share/l1.outer", "sparsity/zeros", "sparsity_adapted/zeros"} <= set(
        found
    )


# ---------------------------------------------------------------- all of them

ALL = [
    term(L1(), 0.2, "both", "l1"),
    term(ProxL2(), 0.2, "both", "prox_l2"),
    term(L2(), 0.2, "outer", "l2"),
    term(Spread(), 0.2, "outer", "spread"),
]


def reweighted(weight: float) -> list[Term]:
    return [replace(t, schedule=Schedule(weight)) for t in ALL]


@pytest.mark.parametrize("weight", [0.0, 1e-8, 1.0, 1e8])
@pytest.mark.parametrize("start", ["some zeros", "all zeros"])
def test_shares_are_between_0_and_1_and_0_for_a_weight_of_0(weight: float, start: str) -> None:
    terms = reweighted(weight)
    learner = IMAML(MODEL, MeanSquaredError(), 1.0, 1e-9, 2, 2, 4, 0.0, Regularization(tuple(terms)))
    terms = [t for t in terms if not (t.name == "spread" and start == "all zeros")]  # a norm has no gradient at 0
    found = measured(learner, {"w": W if start == "some zeros" else 0 * W}, terms)
    shares = {k: v for k, v in found.items() if k.startswith("penalty_share/")}
    assert len(shares) == sum(2 if t.where == "both" else 1 for t in terms)
    assert all(0 <= v <= 1 for v in shares.values())
    for place in ("inner", "outer"):
        assert sum(v for k, v in shares.items() if k.endswith(".inner") == (place == "inner")) <= 1 + 1e-6
    if weight == 0:
        assert set(shares.values()) == {0.0}
        assert {v for k, v in found.items() if k.startswith("penalty/")} == {0.0}


def test_the_share_of_nothing_is_0() -> None:
    assert share(torch.zeros(()), torch.zeros(())) == 0


def test_vmapped_equals_one_by_one() -> None:
    learner = maml(ALL)
    assert measured(learner, {"w": W}, ALL) == pytest.approx(measured(learner, {"w": W}, ALL, chunk=1), rel=EXACT)


def test_without_a_penalty_nothing_is_added() -> None:
    assert not [k for k in measured(maml([]), {"w": W}, []) if k.startswith(("penalty", "sparsity"))]


def test_scheduled_weights_and_learned_factors_are_logged_and_no_measure_of_the_network_sees_them() -> None:
    terms = [
        term(L2(), 0.8, "inner", "l2", shape="linear", steps=4),
        term(ProxL2(learned=True, learn="diagonal"), 0.5, "inner", "prox_l2"),
    ]
    learner = maml(terms)
    params = {k: v.double() for k, v in Regularization(tuple(terms)).init({"w": W}).items()}
    params["reg.prox_l2.log_factor.w"] = torch.tensor([[0.0, 1.0]] * 3).double()
    Regularization(tuple(terms)).set_weights(params, 1)
    found = measured(learner, params, terms)
    assert found["penalty_weight/l2"] == pytest.approx(0.6)
    e = float(torch.tensor(1.0).double().exp())
    factors = {k: v for k, v in found.items() if k.startswith("penalty_factor/")}
    expected = {"prox_l2": (1 + e) / 2, "prox_l2.min": 1.0, "prox_l2.max": e}
    assert factors == pytest.approx({f"penalty_factor/{k}": v for k, v in expected.items()}, rel=EXACT)
    assert "penalty_weight/prox_l2" not in found
    grads = torch.stack([learner.meta_grad(params, t)[0]["w"] for t in TASKS])
    assert found["grad_norm"] == pytest.approx(float(grads.mean(0).norm()), rel=EXACT)
    moved = params | {"w": 1.1 * W, "reg.prox_l2.log_factor.w": 9 + W}
    assert update_measures(params, moved) == pytest.approx({"update_ratio": 0.1, "update_ratio/w": 0.1}, rel=EXACT)


def test_zeros_are_counted_among_the_targeted_weights_of_each_layer() -> None:
    @dataclass(frozen=True)
    class Layered(LinearModel):
        def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
            return x @ params["a.weight"] @ params["b.weight"] + params["b.bias"]

    params = {"a.weight": torch.eye(3).double(), "b.weight": W, "b.bias": torch.zeros(2).double()}
    terms = [term(L1("subgradient"))]
    found = measured(replace(maml(terms), model=Layered(3, 2)), params, terms)
    zeros = {k: v for k, v in found.items() if k.startswith("sparsity")}
    expected = {"sparsity/zeros": 7 / 15, "sparsity/a": 6 / 9, "sparsity/b": 1 / 6}
    assert zeros == pytest.approx(expected)
