"""The support vector machine of MetaOptNet against its duality gap, another solver and central differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.quadratic import LinearModel, assert_same
from scipy.optimize import minimize
from torch import Tensor

from metarun.algorithms.losses import CrossEntropy
from metarun.algorithms.metaoptnet import SCALE, MetaOptNet, project_to_simplex, solve_dual
from metarun.errors import SettingError
from metarun.types import Batch, Params, Task

WAYS, INPUTS, FEATURES, COST, RIDGE = 3, 5, 4, 0.2, 1.0
MODEL = LinearModel(INPUTS, FEATURES, bias=True)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.arange(WAYS).repeat(2)
ONE_HOT = F.one_hot(LABELS, WAYS).double()
Z = draw(len(LABELS), FEATURES, seed=1)
GRAM = Z @ Z.T + RIDGE * torch.eye(len(Z), dtype=torch.float64)
TASK = Task(
    Batch(draw(6, INPUTS, seed=2), LABELS), Batch(draw(9, INPUTS, seed=3), torch.arange(WAYS).repeat_interleave(3))
)


def dual(a: Tensor) -> Tensor:
    return 0.5 * (a * (GRAM @ a)).sum() - (a * ONE_HOT).sum()


def test_the_steps_close_the_duality_gap() -> None:
    """Of features [Z, sqrt(r) I], whose Gram matrix is G: the primal value at W = [Z, sqrt(r) I]' A is minus the dual's
    at A for the solution alone. Some rows of A are at a bound and some are not."""
    a = solve_dual(GRAM, ONE_HOT, COST, RIDGE, 500)
    assert float(a.sum(1).abs().max()) < 1e-12
    assert float((a - COST * ONE_HOT).max()) <= 1e-12
    scores = GRAM @ a
    hinge = (1 - ONE_HOT + scores - scores[torch.arange(len(Z)), LABELS][:, None]).max(1).values
    primal = 0.5 * (a * scores).sum() + COST * hinge.sum()
    assert float(primal + dual(a)) < 1e-10
    own = a[torch.arange(len(Z)), LABELS]
    assert (own > COST - 1e-9).any()
    assert (own < COST - 1e-3).any()


def test_another_solver_finds_the_same() -> None:
    """scipy's sequential quadratic programming, from the gradient and the constraints of the docstring."""
    shape, like = tuple(ONE_HOT.shape), ONE_HOT.numpy()
    found = minimize(
        lambda v: float(dual(torch.from_numpy(v.reshape(shape)))),
        np.zeros(like.size),
        jac=lambda v: (GRAM.numpy() @ v.reshape(shape) - like).ravel(),
        bounds=[(None, COST * y) for y in like.ravel()],
        constraints={"type": "eq", "fun": lambda v: v.reshape(shape).sum(1)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert found.success
    assert np.abs(solve_dual(GRAM, ONE_HOT, COST, RIDGE, 500).numpy() - found.x.reshape(shape)).max() < 1e-6


def test_the_projection_is_the_nearest_point() -> None:
    """(x - p) . (q - p) <= 0 for the corners q of the simplex, which has p."""
    x = draw(50, 4, seed=4)
    p = project_to_simplex(x, 0.7)
    assert_same(p.sum(1), torch.full((50,), 0.7, dtype=torch.float64))
    assert float(p.min()) >= 0
    corners = 0.7 * torch.eye(4, dtype=torch.float64)
    assert float(((x - p)[:, None] * (corners[None] - p[:, None])).sum(-1).max()) < 1e-12


def loss_at(params: Params, steps: int) -> Tensor:
    """The cross-entropy of a f(x) Z' A, with A after so many steps."""
    z, queries = (MODEL.apply(params, batch.x) for batch in TASK)
    gram = z @ z.T + RIDGE * torch.eye(len(z), dtype=torch.float64)
    weights = z.T @ solve_dual(gram, ONE_HOT, COST, RIDGE, steps)
    return F.cross_entropy(params[SCALE] * queries @ weights, TASK.query.y)


def test_the_meta_gradient_is_that_of_the_exact_machine() -> None:
    """Central differences, entry by entry, of the loss at a solution that no further step changes."""
    learner = MetaOptNet(MODEL, CrossEntropy(), WAYS, COST, RIDGE, 2.0, 1000)
    params = {name: value.double() for name, value in learner.init(0).items()}
    found, metrics = learner.meta_grad(params, TASK)
    assert float(metrics["loss"]) == pytest.approx(float(loss_at(params, 3000)), rel=1e-10)
    h = 1e-5
    for name, value in params.items():
        slopes = torch.zeros(value.numel(), dtype=torch.float64)
        for i in range(value.numel()):
            step = torch.zeros(value.numel(), dtype=torch.float64)
            step[i] = h
            up, down = (loss_at(params | {name: value + s * step.view(value.shape)}, 1000) for s in (1, -1))
            slopes[i] = (up - down) / (2 * h)
        assert float((found[name].flatten() - slopes).abs().max()) < 1e-7, name


def test_permuted_classes_permute_the_predictions() -> None:
    learner = MetaOptNet(MODEL, CrossEntropy(), WAYS, COST, RIDGE, 2.0, 40)
    params, order = {name: value.double() for name, value in learner.init(0).items()}, torch.tensor([2, 0, 1])
    plain, permuted = (
        learner.predict(learner.adapt(params, Batch(TASK.support.x, y)), TASK.query.x) for y in (LABELS, order[LABELS])
    )
    assert_same(permuted[:, order], plain)


@pytest.mark.parametrize(
    "setting", [{"margin_cost": 0.0}, {"ridge": 0.0}, {"scale": -1.0}, {"solver_steps": 0}], ids=str
)
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    sound = {"margin_cost": COST, "ridge": RIDGE, "scale": 1.0, "solver_steps": 5}
    with pytest.raises(SettingError) as refused:
        MetaOptNet(MODEL, CrossEntropy(), WAYS, **(sound | setting))
    assert refused.value.key in setting
