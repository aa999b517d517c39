"""iMAML's meta-gradient with any inner penalty, against finite differences of theta -> L^Q(phi*(theta)) in float64.

phi* is found by so many inner steps that the gradient of the inner objective is 0 to rounding; the linear system is
solved with as many steps as it has unknowns. The network has a hidden ReLU layer, and is small.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from metarun.algorithms import inner_loop
from metarun.algorithms.imaml import IMAML
from metarun.algorithms.inner_loop import descend_with_state
from metarun.algorithms.losses import CrossEntropy, MeanSquaredError
from metarun.algorithms.maml import MAML
from metarun.algorithms.objective import Regularization, Schedule, Term
from metarun.algorithms.reptile import Reptile
from metarun.compute.linalg import flatten, norm, sub
from metarun.errors import UserError
from metarun.models.mlp import mlp
from metarun.regularizers.gradient_difference import GradientDifference
from metarun.regularizers.kl import KL
from metarun.regularizers.l1 import L1
from metarun.regularizers.l2 import L2
from metarun.regularizers.predictive_kl import PredictiveKL
from metarun.regularizers.prox_l2 import ProxL2
from metarun.types import Batch, Params, Task

REGRESSION = mlp((2,), 1, (4,), "none")
CLASSIFICATION = mlp((2,), 3, (4,), "none")


def inner_term(penalty: Any, weight: float, name: str = "penalty", where: str = "inner") -> Term:
    return Term(name, penalty, Schedule(weight), where)


PROX = inner_term(ProxL2(), 2.0, "prox_l2")

INNER = {
    "prox_l2": [inner_term(ProxL2(), 2.0)],
    "prox_l2 by layer": [inner_term(ProxL2(factors={"head": 0.5, "block0.weight": 2.0}), 2.0)],
    "prox_l2 learned": [inner_term(ProxL2(learned=True), 2.0)],
    "prox_l2 learned by layer": [inner_term(ProxL2(learned=True, learn="layer"), 2.0)],
    "prox_l2 learned diagonal": [inner_term(ProxL2(learned=True, learn="diagonal"), 2.0)],
    "l2 with prox_l2": [inner_term(L2(), 0.3, "l2"), inner_term(ProxL2(), 2.0, "prox_l2")],
    "l1 prox with prox_l2": [inner_term(L1("prox"), 0.05, "l1"), inner_term(ProxL2(), 2.0, "prox_l2")],
    "l1 subgradient": [inner_term(L1("subgradient"), 0.001, "l1"), inner_term(ProxL2(), 2.0, "prox_l2")],
    "kl of diagonal Gaussians": [inner_term(KL(0.3, 0.7, prior_stds={"head": 0.9, "block0.weight": 0.5}), 1.0)],
    "kl learned by layer, both": [inner_term(KL(0.3, 0.5, learned=True, learn="layer"), 1.0, where="both")],
    "kl learned diagonal": [inner_term(KL(0.3, 0.5, learned=True, learn="diagonal"), 1.0)],
    "forward predictive_kl": [inner_term(PredictiveKL("classification", "forward"), 2.0, "predictive_kl"), PROX],
    "reverse predictive_kl": [inner_term(PredictiveKL("classification", "reverse"), 2.0, "predictive_kl"), PROX],
    "gaussian predictive_kl": [inner_term(PredictiveKL("regression", std=0.8), 1.0, "predictive_kl"), PROX],
    "gradient_difference": [inner_term(GradientDifference(), 0.1, "gradient_difference"), PROX],
}


def learner_of(terms: list[Term], kind: str = "regression", prox: float = 0.0) -> IMAML:
    model, loss = (REGRESSION, MeanSquaredError()) if kind == "regression" else (CLASSIFICATION, CrossEntropy())
    return IMAML(model, loss, prox, 0.06, 600, 600, 60, 0.0, Regularization(tuple(terms)))


def theta_of(learner: IMAML) -> Params:
    """Initial weights away from zero, in float64, with what the penalties add."""
    generator = torch.Generator().manual_seed(0)
    params = learner.regularization.init(learner.init(0))
    return {k: v.double() + 0.3 * torch.randn(v.shape, generator=generator).double() for k, v in params.items()}


def task_of(kind: str) -> Task:
    # Data for which no minimiser lies at a kink of the ReLUs, where a descent would bounce for ever.
    generator = torch.Generator().manual_seed(2 if kind == "regression" else 1)

    def batch(rows: int) -> Batch:
        x = torch.randn(rows, 2, generator=generator).double()
        y = x[:, :1].sin() + x[:, 1:] if kind == "regression" else (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
        return Batch(x, y)

    return Task(batch(8), batch(9))


def finite_differences(learner: IMAML, theta: Params, task: Task, eps: float = 1e-5) -> Params:
    """Central differences of the outer objective at phi*(theta), all perturbed starts adapted as one batch."""
    names, sizes = list(theta), [v.numel() for v in theta.values()]
    flat = torch.cat([v.flatten() for v in theta.values()])
    moved = torch.cat([flat + sign * eps * torch.eye(len(flat)).double() for sign in (1, -1)])
    starts = {n: part.view(-1, *theta[n].shape) for n, part in zip(names, moved.split(sizes, dim=1), strict=True)}

    def value(start: Params) -> Tensor:
        phi = learner.adapt(start, task.support).params
        return inner_loop.outer_objective(learner, start, phi, task)[0]

    up, down = vmap(value)(starts).chunk(2)
    slopes = (up - down) / (2 * eps)
    return {n: part.view(theta[n].shape) for n, part in zip(names, slopes.split(sizes), strict=True)}


SOFTMAX = ("forward predictive_kl", "reverse predictive_kl", "l2 with prox_l2", "l1 subgradient", "prox_l2 learned")
SHORT = ("prox_l2 learned", "l1 prox with prox_l2", "forward predictive_kl")
"""The rows that `make test` has, one for each way in which a penalty enters; the others are the long suite's."""


def cases() -> list[Any]:
    """Each row on one kind of data: on classes where predictions are a softmax, and some others."""
    rows = [(name, "classification" if name in SOFTMAX else "regression") for name in INNER]
    marks = {name: [] if name in SHORT else [pytest.mark.long] for name in INNER}
    return [pytest.param(INNER[name], kind, id=f"{name}-{kind}", marks=marks[name]) for name, kind in rows]


@pytest.mark.parametrize(("terms", "kind"), cases())
def test_the_implicit_gradient_is_that_of_the_minimiser(terms: list[Term], kind: str) -> None:
    learner, task = learner_of(terms, kind), task_of(kind)
    theta = theta_of(learner)
    found, metrics = learner.meta_grad(theta, task)
    assert float(metrics["stationarity"]) < 1e-10
    expected = finite_differences(learner, theta, task)
    for name in theta:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("solver", ["adaptive", "nesterov"])
def test_solvers_that_choose_their_rates_need_fewer_steps(solver: str) -> None:
    """From a first rate far too long, 100 steps end nearer to the minimiser than 600 of a fixed rate."""
    fixed, task = learner_of([PROX]), task_of("regression")
    theta = theta_of(fixed)
    learner = replace(fixed, inner_solver=solver, inner_lr=5.0, inner_steps=100)
    found, metrics = learner.meta_grad(theta, task)
    assert float(metrics["stationarity"]) < 1e-10
    expected = fixed.meta_grad(theta, task)[0]
    for name in theta:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-9)


def test_an_adaptive_solver_counts_the_proximal_steps_of_a_penalty_in() -> None:
    """The curvature between two points lies along all of the way between them; with weights held at zero."""
    terms = INNER["l1 prox with prox_l2"]
    learner, task = replace(learner_of(terms), inner_solver="adaptive", inner_steps=100), task_of("regression")
    theta = theta_of(learner)
    found, metrics = learner.meta_grad(theta, task)
    assert float(metrics["stationarity"]) < 1e-10
    expected = finite_differences(learner, theta, task)
    for name in theta:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-8)
    *_, (phi, state) = descend_with_state(learner.inner_objective(theta, task.support), theta, learner.inner_rule, 1)
    torch.testing.assert_close(state.moved, flatten(sub(phi, theta)), rtol=1e-12, atol=1e-14)
    with pytest.raises(UserError, match=r"^inner_solver=nesterov: must be gradient or adaptive where reg"):
        replace(learner, inner_solver="nesterov")


# ---------------------------------------------------------------- the proximal term alone

NOTHING = Term("nothing", L2(), Schedule(0.0), "inner")
SCHEDULED = Term("outer", L2(), Schedule(0.1, "linear"), "outer")
"""It adds an entry `reg.outer.weight` to theta, which no inner loop moves."""

OTHER_WAYS = {
    "beside an inner penalty that weighs 0": {"regularization": Regularization((NOTHING, SCHEDULED))},
    "with all that is adapted by name": {"adapted": ("block", "head")},
    "as a penalty": {"prox": 0.0, "regularization": Regularization((inner_term(ProxL2(), 1.7), SCHEDULED))},
}


@pytest.mark.parametrize("changed", OTHER_WAYS.values(), ids=OTHER_WAYS)
@pytest.mark.parametrize("damping", [0.0, 0.4])
def test_the_proximal_term_gives_the_same_whichever_way_it_is_differentiated(
    changed: dict[str, Any], damping: float
) -> None:
    """After a few inner steps, where nothing has converged; each of the other ways asks for products by a graph."""
    bare = IMAML(CLASSIFICATION, CrossEntropy(), 1.7, 0.06, 5, 5, 4, damping, Regularization((SCHEDULED,)))
    theta, task = theta_of(bare), task_of("classification")
    found, metrics = bare.meta_grad(theta, task)
    expected, others = replace(bare, **changed).meta_grad(theta, task)
    assert found.keys() == expected.keys() == theta.keys()
    assert float(norm(found)) > 0.1
    for name in theta:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-14)
    for name in metrics:
        torch.testing.assert_close(metrics[name], others[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", ["subgradient", "prox"])
def test_stationarity_is_what_one_more_inner_step_would_still_do(method: str) -> None:
    """|phi - phi'| / inner_lr over |grad L^S(theta)|, phi' one step further by hand."""
    weight, prox, lr = 0.6, 1.7, 0.06  # so much that proximal steps hold some weights at zero
    l1 = Term("l1", L1(method), Schedule(weight), "inner")
    learner = IMAML(REGRESSION, MeanSquaredError(), prox, lr, 5, 5, 4, 0.0, Regularization((l1,)))
    theta, task = theta_of(learner), task_of("regression")
    phi = learner.adapt(theta, task.support).params

    def support_loss(at: Params) -> Tensor:
        return MeanSquaredError()(REGRESSION.apply(at, task.support.x), task.support.y)

    slope = grad(support_loss)(phi)
    onwards = {}
    for name, w in phi.items():
        step = slope[name] + prox * (w - theta[name])
        if w.ndim > 1 and method == "subgradient":
            step = step + weight * w.sign()
        onwards[name] = w - lr * step
        if w.ndim > 1 and method == "prox":
            onwards[name] = torch.nn.functional.softshrink(onwards[name], lr * weight)
    expected = norm(sub(phi, onwards)) / lr / norm(grad(support_loss)(theta))
    torch.testing.assert_close(learner.meta_grad(theta, task)[1]["stationarity"], expected, rtol=1e-12, atol=0.0)


# ---------------------------------------------------------------- a head of zero


def make_maml(zero_head: bool, **more: Any) -> MAML:
    return MAML(CLASSIFICATION, CrossEntropy(), 0.5, 2, 2, False, zero_head=zero_head, **more)


ZERO_HEADS = {
    "maml": make_maml,
    "first order": lambda zero_head: replace(make_maml(zero_head), first_order=True),
    "reptile": lambda zero_head: Reptile(CLASSIFICATION, CrossEntropy(), "sgd", 0.5, 3, 3, None, zero_head=zero_head),
    "imaml": lambda zero_head: IMAML(CLASSIFICATION, CrossEntropy(), 1.0, 0.1, 9, 9, 9, 0.0, zero_head=zero_head),
}


@pytest.mark.parametrize("make", ZERO_HEADS.values(), ids=ZERO_HEADS)
def test_a_head_of_equal_rows_is_one_of_zero(make: Any) -> None:
    """UNICORN-MAML's head, any one vector for all classes: the other weights get the same meta-gradient."""
    zero, free = make(True), make(False)
    theta, task = {k: v.double() for k, v in zero.init(0).items()}, task_of("classification")
    assert not any(theta[name].any() for name in ("head.weight", "head.bias"))
    assert free.init(0)["head.weight"].any()
    rows = torch.randn(theta["head.weight"].shape[1], generator=torch.Generator().manual_seed(3)).double()
    found = free.meta_grad(theta | {"head.weight": rows.expand_as(theta["head.weight"])}, task)[0]
    expected = zero.meta_grad(theta, task)[0]
    for name in (n for n in theta if not n.startswith("head.")):
        assert float(expected[name].norm()) > 0
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-13)


def test_a_head_that_starts_at_zero_has_to_be_adapted() -> None:
    with pytest.raises(UserError, match=r"^zero_head=True: needs the head among algo.adapted"):
        make_maml(True, adapted=("block0",))
