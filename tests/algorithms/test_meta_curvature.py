"""Meta-Curvature: MAML at the identity, products along modes, and meta-gradients away from the identity."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.quadratic import LinearModel, assert_same, random_task
from torch import Tensor

import metarun
from metarun.algorithms.losses import CrossEntropy, MeanSquaredError
from metarun.algorithms.maml import MAML
from metarun.algorithms.meta_curvature import CURVATURE, multiply_modes
from metarun.errors import UserError
from metarun.models.conv4 import conv4
from metarun.testing.episodes import DATASETS, SPECS, select_task
from metarun.training.experiment import assemble
from metarun.types import Batch, Params, Task

MODEL, RATE = LinearModel(3, 2, bias=True), 0.1
TASK = random_task(MODEL, 3)


def learner(learned: str = "curvature", steps: int = 2, first_order: bool = False) -> MAML:
    return MAML(MODEL, MeanSquaredError(), RATE, steps, steps, first_order, learned_rates=learned)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def split(theta: Params) -> tuple[Params, Params]:
    matrices = {k: v for k, v in theta.items() if k.startswith(CURVATURE)}
    return {k: v for k, v in theta.items() if k not in matrices}, matrices


def test_at_the_identity_it_is_maml_to_the_last_bit() -> None:
    """On a network of convolutions; so are the gradients of its weights."""
    images = DATASETS["classification"]
    task = select_task(images.episodes("train", 0, 0, range(1), SPECS["classification"]), 0)
    task = Task(*(Batch(b.x.double(), b.y) for b in task))
    shape, ways = images.input_shape(), SPECS["classification"].ways
    model = conv4(shape, ways, filters=3, norm="batch", pool="stride", readout="mean")
    plain, curved = (
        MAML(model, CrossEntropy(), 0.5, 2, 2, False, learned_rates=kind) for kind in ("none", "curvature")
    )
    theta = {k: v.double() for k, v in curved.init(0).items()}
    weights, matrices = split(theta)
    assert {*matrices} >= {f"{CURVATURE}block1.weight.{mode}" for mode in (0, 1, 2)}
    found, expected = curved.adapt(theta, task.support).params, plain.adapt(weights, task.support).params
    assert all(torch.equal(found[k], v) for k, v in expected.items())
    gradient = curved.meta_grad(theta, task)[0]
    assert_same({k: gradient[k] for k in weights}, plain.meta_grad(weights, task)[0])


@pytest.mark.parametrize(
    ("shape", "sum_over"),
    [((4, 3, 3, 2), "ap,bq,cr,pqr->abc"), ((4, 3), "ap,bq,pq->ab"), ((4,), "ap,p->a"), ((), "ap,p->a")],
)
def test_each_mode_has_its_matrix(shape: tuple[int, ...], sum_over: str) -> None:
    g = draw(*shape, seed=1)
    lengths = [*shape[:2], *[6] * (len(shape) > 2)] or [1]
    matrices = [draw(n, n, seed=k + 2) for k, n in enumerate(lengths)]
    named = {f"{CURVATURE}w.{k}": m for k, m in enumerate(matrices)}
    expected = torch.einsum(sum_over, *matrices, g.reshape(lengths)).reshape(shape)
    torch.testing.assert_close(multiply_modes("w", g, named), expected, rtol=1e-12, atol=1e-12)


def query_loss(theta: Params, steps: int) -> Tensor:
    """After plain steps with matrix products."""
    phi, m = split(theta)
    for _ in range(steps):
        leaves = {n: v.detach().requires_grad_() for n, v in phi.items()}
        loss = MeanSquaredError()(MODEL.apply(leaves, TASK.support.x), TASK.support.y)
        g = dict(zip(leaves, torch.autograd.grad(loss, [*leaves.values()]), strict=True))
        w = m[f"{CURVATURE}w.0"] @ g["w"] @ m[f"{CURVATURE}w.1"].T
        phi = {"w": phi["w"] - RATE * w, "b": phi["b"] - RATE * m[f"{CURVATURE}b.0"] @ g["b"]}
    return MeanSquaredError()(MODEL.apply(phi, TASK.query.x), TASK.query.y)


def theta_away() -> Params:
    named = enumerate(learner().init(0).items())
    return {k: v.double() + (0.3 * draw(*v.shape, seed=i) if k.startswith(CURVATURE) else 0) for i, (k, v) in named}


def test_the_meta_gradient_is_that_of_the_query_loss() -> None:
    """By central differences, entry by entry, also of matrices that are not symmetric."""
    theta = theta_away()
    found, metrics = learner().meta_grad(theta, TASK)
    assert float(metrics["loss"]) == pytest.approx(float(query_loss(theta, 2)), rel=1e-12)
    for name, value in theta.items():
        for i in range(value.numel()):
            step = torch.zeros(value.numel(), dtype=torch.float64)
            step[i] = 1e-6
            up, down = (float(query_loss(theta | {name: value + s * step.view(value.shape)}, 2)) for s in (1, -1))
            assert float(found[name].flatten()[i]) == pytest.approx((up - down) / 2e-6, rel=1e-5, abs=1e-8)


def test_of_one_step_the_matrix_of_a_bias_has_an_outer_product_for_a_gradient() -> None:
    """phi = theta - lr M g_S, so d L_Q / d M = -lr g_Q(phi) g_S^T, first order or not."""
    theta = theta_away()
    weights = split(theta)[0]

    def slope(at: Params, batch: Batch) -> Tensor:
        leaves = {n: v.detach().requires_grad_() for n, v in at.items()}
        return torch.autograd.grad(MeanSquaredError()(MODEL.apply(leaves, batch.x), batch.y), leaves["b"])[0]

    for first_order in (False, True):
        at = learner(steps=1, first_order=first_order)
        phi = {k: v for k, v in at.adapt(theta, TASK.support).params.items() if k in weights}
        expected = -RATE * torch.outer(slope(phi, TASK.query), slope(weights, TASK.support))
        torch.testing.assert_close(at.meta_grad(theta, TASK)[0][f"{CURVATURE}b.0"], expected, rtol=1e-10, atol=1e-12)


def test_classes_of_a_head_of_0_share_what_is_learned() -> None:
    model = conv4((1, 8, 8), 5, filters=3, norm="batch", pool="stride", readout="mean")
    plain = MAML(model, CrossEntropy(), 0.5, 2, 2, False, learned_rates="curvature")
    modes = [
        {k.removeprefix(CURVATURE) for k in at.init(0) if k.startswith(f"{CURVATURE}head.")}
        for at in (plain, replace(plain, zero_head=True))
    ]
    assert modes == [{"head.weight.0", "head.weight.1", "head.bias.0"}, {"head.weight.1"}]


def test_inner_proximal_steps_are_refused() -> None:
    overrides = ["reg=l1", "reg.where=inner", "reg.method=prox"]
    with pytest.raises(UserError, match=r"algo\.learned_rates=curvature: has no proximal steps"):
        assemble(metarun.compose(["algo=metacurvature", "data=sinusoid", *overrides]))
