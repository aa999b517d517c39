"""BOIL, ProtoMAML and UNICORN-MAML: where the head of an inner loop starts and whether it moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.quadratic import assert_same
from torch import Tensor, nn

import metarun
from metarun.algorithms.embeddings import compare
from metarun.algorithms.inner_loop import is_chosen
from metarun.algorithms.losses import CrossEntropy
from metarun.algorithms.maml import MAML
from metarun.algorithms.protomaml import ProtoMAML
from metarun.errors import UserError
from metarun.models.mlp import mlp
from metarun.training.experiment import assemble
from metarun.types import HEAD, Batch, Params, Task

WAYS, INPUTS, RATE, STEPS = 3, 5, 0.05, 3
MODEL = mlp((INPUTS,), WAYS, (4,), "none")
MAML_ = MAML(MODEL, CrossEntropy(), RATE, STEPS, STEPS, first_order=False)
PROTOMAML = ProtoMAML(MODEL, CrossEntropy(), RATE, STEPS, STEPS, first_order=False)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(each: int, seed: int) -> Batch:
    return Batch(draw(WAYS * each, INPUTS, seed=seed), torch.arange(WAYS).repeat(each))


TASK = Task(rows(2, 1), rows(3, 2))


def doubles(learner: MAML | ProtoMAML) -> Params:
    """Shifts that are not 0, so that few units of a ReLU are at its kink."""
    params = {name: value.double() for name, value in learner.init(0).items()}
    return params | {"block0.shift": params["block0.shift"] + 0.1}


def features(body: Params, x: Tensor) -> Tensor:
    return (x @ body["block0.weight"].T + body["block0.shift"]).relu()


def plain_losses(theta: Params, slopes: list[Params] | None = None) -> tuple[Tensor, list[Params]]:
    """L^Q after plain steps from prototypes, and the support gradients; `slopes` takes those for constants."""
    z = features(theta, TASK.support.x)
    centres = torch.stack([z[TASK.support.y == n].mean(0) for n in range(WAYS)])
    # Other tensors than theta: the support gradient at phi_0 is not by way of its prototypes.
    phi = {name: 1 * w for name, w in theta.items()}
    phi |= {"head.weight": 2 * centres, "head.bias": -(centres**2).sum(1)}
    met = []
    for k in range(STEPS):
        support = F.cross_entropy(logits(phi, TASK.support.x), TASK.support.y)
        names = list(phi)
        found = (
            slopes[k]
            if slopes
            else dict(zip(names, torch.autograd.grad(support, [*phi.values()], create_graph=True), strict=True))
        )
        met.append({name: slope.detach() for name, slope in found.items()})
        phi = {name: phi[name] - RATE * found[name] for name in names}
    return F.cross_entropy(logits(phi, TASK.query.x), TASK.query.y), met


def logits(phi: Params, x: Tensor) -> Tensor:
    return features(phi, x) @ phi["head.weight"].T + phi["head.bias"]


@pytest.mark.parametrize("first_order", [False, True])
def test_the_gradient_of_protomaml_goes_through_steps_and_prototypes(first_order: bool) -> None:
    """Against autograd on steps written out here; with first_order those steps have constant support gradients."""
    learner = replace(PROTOMAML, first_order=first_order)
    theta = {name: value.requires_grad_() for name, value in doubles(learner).items()}
    loss, slopes = plain_losses(theta)
    if first_order:
        loss, _ = plain_losses(theta, slopes)
    expected = torch.autograd.grad(loss, [*theta.values()], allow_unused=True)
    plain = {name: value.detach() for name, value in theta.items()}
    found, metrics = learner.meta_grad(plain, TASK)
    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-12)
    for name, slope in zip(theta, expected, strict=True):
        if name.startswith(HEAD):
            assert not found[name].any()  # the head of theta has no effect
        else:
            assert_same(found[name], slope)


@pytest.mark.parametrize("settings", [{"inner_checkpoint": 2}, {"inner_checkpoint": True}])
def test_the_gradient_is_the_same_in_segments(settings: dict[str, int]) -> None:
    theta = doubles(PROTOMAML)
    assert_same(replace(PROTOMAML, **settings).meta_grad(theta, TASK)[0], PROTOMAML.meta_grad(theta, TASK)[0])


def test_before_its_first_step_protomaml_is_a_prototypical_network() -> None:
    theta = doubles(PROTOMAML)
    z, queries = features(theta, TASK.support.x), features(theta, TASK.query.x)
    centres = torch.stack([z[TASK.support.y == n].mean(0) for n in range(WAYS)])
    first = next(iter(PROTOMAML.adaptations(theta, TASK.support, 0)))
    found = PROTOMAML.predict(first, TASK.query.x)
    assert_same(found.softmax(1), compare(queries, centres, "euclidean").softmax(1))


ORDER = torch.tensor([2, 0, 1])


def after_steps(learner: MAML | ProtoMAML, theta: Params, y: Tensor) -> Tensor:
    return learner.predict(learner.adapt(theta, Batch(TASK.support.x, y)), TASK.query.x)


@pytest.mark.parametrize("learner", [PROTOMAML, replace(MAML_, zero_head=True)], ids=["protomaml", "unicorn"])
def test_permuted_classes_permute_the_predictions(learner: MAML | ProtoMAML) -> None:
    """Also with more classes than training had; of a learned head this does not hold."""
    theta = doubles(learner)
    assert_same(
        after_steps(learner, theta, ORDER[TASK.support.y])[:, ORDER], after_steps(learner, theta, TASK.support.y)
    )
    learned = doubles(MAML_)
    moved = after_steps(MAML_, learned, ORDER[TASK.support.y])[:, ORDER] - after_steps(MAML_, learned, TASK.support.y)
    assert float(moved.abs().max()) > 1e-2


def test_one_vector_for_all_classes_is_a_head_of_0() -> None:
    """UNICORN-MAML with its learned vector written out: predictions and gradients are those of `zero_head`, and the
    vector's own gradient, the sum over the rows, is 0."""
    zero, vector = doubles(replace(MAML_, zero_head=True)), draw(4, seed=7)
    copied = zero | {"head.weight": vector.expand(WAYS, -1).clone(), "head.bias": zero["head.bias"] + 0.4}
    assert_same(
        after_steps(MAML_, copied, TASK.support.y).softmax(1), after_steps(MAML_, zero, TASK.support.y).softmax(1)
    )
    found, expected = (MAML_.meta_grad(theta, TASK)[0] for theta in (copied, zero))
    for name, slope in expected.items():
        if name.startswith(HEAD):
            assert float(found[name].sum(0).abs().max()) < 1e-12
            assert float(found[name].abs().max()) > 1e-3
        else:
            assert_same(found[name], slope)


def test_boil_moves_all_but_the_head() -> None:
    """phi = theta - alpha grad L^S for the body, and the head of theta."""
    learner = replace(MAML_, adapted=("-head",), inner_steps=1)
    theta = doubles(learner)
    leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
    support = F.cross_entropy(logits(leaves, TASK.support.x), TASK.support.y)
    slopes = dict(zip(leaves, torch.autograd.grad(support, [*leaves.values()]), strict=True))
    phi = learner.adapt(theta, TASK.support).params
    for name, weight in theta.items():
        if name.startswith(HEAD):
            assert torch.equal(phi[name], weight)
        else:
            assert_same(phi[name], weight - RATE * slopes[name])


def test_a_minus_leaves_parameters_out() -> None:
    cases = {("head",): "head.bias", ("-head",): "block0.weight", ("block", "-block0"): "block1.weight"}
    names = ["block0.weight", "block1.weight", "head.bias"]
    for prefixes, chosen in cases.items():
        assert chosen in [name for name in names if is_chosen(name, prefixes)]
    assert [n for n in names if is_chosen(n, ("-head",))] == ["block0.weight", "block1.weight"]
    assert [n for n in names if is_chosen(n, ("block", "-block0"))] == ["block1.weight"]


class NoBias(nn.Module):
    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.body = nn.Linear(28 * 28, 4)
        self.head = nn.Linear(4, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.flatten(x)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algo=boil", "algo.adapted=[-hed]"], r"algo\.adapted=\['-hed'\]: no parameter .* choices: block0"),
        (["algo=boil", "algo.adapted=[-]"], r"algo\.adapted=.*: leaves out everything"),
        (["algo=boil", "algo.zero_head=true"], r"algo\.zero_head=True: needs the head among algo\.adapted"),
        (["algo=protomaml", "data=sinusoid"], r"needs classification"),
        (["algo=protomaml", "data=logistic"], r"algo=protomaml model=linear: nothing is left to train"),
        (["algo=reptile", "data=logistic", "algo.zero_head=true"], r"algo=reptile model=linear: nothing is left"),
        (["algo=boil", "data=logistic"], r"algo=boil model=linear: algo\.adapted=\['-head'\] leaves .* no parameter"),
    ],
)
def test_mistakes_are_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        assemble(metarun.compose(overrides))


def test_protomaml_needs_a_head_with_a_bias() -> None:
    from metarun.models import from_module

    model = from_module(NoBias((1, 28, 28), WAYS))
    with pytest.raises(UserError, match=r"algo=protomaml: needs a network whose head has a weight .*; has head.weight"):
        replace(PROTOMAML, model=model).init(0)
