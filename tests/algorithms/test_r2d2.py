"""R2-D2 against torch's least squares, a plain solve and central differences, all in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.quadratic import LinearModel, assert_same
from torch import Tensor

import metarun
from metarun.algorithms.losses import CrossEntropy, MeanSquaredError
from metarun.algorithms.r2d2 import BIAS, LOG_LAMBDA, R2D2, SCALE, ridge_regression
from metarun.errors import UserError
from metarun.types import Batch, Params, Task

WAYS, INPUTS, FEATURES = 3, 5, 4
MODEL = LinearModel(INPUTS, FEATURES, bias=True)
BOTH_SYSTEMS = pytest.mark.parametrize("shots", [1, 4], ids=["rows below features", "features below rows"])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def task(shots: int) -> Task:
    labels = torch.arange(WAYS)
    return Task(
        Batch(draw(WAYS * shots, INPUTS, seed=1), labels.repeat(shots)),
        Batch(draw(WAYS * 2, INPUTS, seed=2), labels.repeat_interleave(2)),
    )


def start(learner: R2D2) -> Params:
    """Meta-parameters whose a, b and lambda are not those that training begins with."""
    params = {name: value.double() for name, value in learner.init(0).items()}
    one = params[SCALE]
    return params | {LOG_LAMBDA: one * 0 - 0.7, SCALE: one * 0 + 2.5, BIAS: one * 0 + 0.3}


def plain_loss(params: Params, episode: Task) -> Tensor:
    """[Z; sqrt(lambda) I] W = [Y; 0] by least squares, then the cross-entropy of a Z W + b."""
    z_SD, z_MD = (MODEL.apply(params, batch.x) for batch in episode)
    ridge = params[LOG_LAMBDA].exp().sqrt() * torch.eye(FEATURES, dtype=torch.float64)
    targets = torch.cat([F.one_hot(episode.support.y, WAYS).double(), torch.zeros(FEATURES, WAYS).double()])
    w_DN = torch.linalg.lstsq(torch.cat([z_SD, ridge]), targets).solution
    return F.cross_entropy(params[SCALE] * (z_MD @ w_DN) + params[BIAS], episode.query.y)


@pytest.mark.parametrize(("rows", "features"), [(3, 7), (7, 3), (5, 5)])
def test_the_head_minimises_the_ridge_objective(rows: int, features: int) -> None:
    """By either system: the gradient 2 Z' (Z W - Y) + 2 lambda W is 0, and torch's least squares gives the same W."""
    z, y, strength = draw(rows, features, seed=3), draw(rows, 2, seed=4), torch.tensor(0.3, dtype=torch.float64)
    found = ridge_regression(z, y, strength)
    assert float((z.T @ (z @ found - y) + strength * found).abs().max()) < 1e-12
    stacked = torch.cat([z, strength.sqrt() * torch.eye(features).double()])
    expected = torch.linalg.lstsq(stacked, torch.cat([y, torch.zeros(features, 2).double()])).solution
    assert_same(found, expected)


@BOTH_SYSTEMS
def test_the_meta_gradient_is_that_of_a_plain_least_squares_head(shots: int) -> None:
    """By central differences, entry by entry, for the network's weights, lambda, a and b."""
    learner = R2D2(MODEL, CrossEntropy(), WAYS, 1.0, 1.0)
    params, episode, h = start(learner), task(shots), 1e-6
    found, metrics = learner.meta_grad(params, episode)
    assert float(metrics["loss"]) == pytest.approx(float(plain_loss(params, episode)), rel=1e-12)
    for name, value in params.items():
        slopes = torch.zeros(value.numel(), dtype=torch.float64)
        for i in range(value.numel()):
            step = torch.zeros(value.numel(), dtype=torch.float64)
            step[i] = h
            up, down = (plain_loss(params | {name: value + sign * step.view(value.shape)}, episode) for sign in (1, -1))
            slopes[i] = (up - down) / (2 * h)
        assert float((found[name].flatten() - slopes).abs().max()) < 1e-8, name
    assert float(found[LOG_LAMBDA].abs()) > 1e-3  # the head depends on it
    assert float(found[BIAS].abs()) < 1e-12  # a softmax does not


@BOTH_SYSTEMS
def test_targets_of_a_regression_take_the_place_of_labels(shots: int) -> None:
    """prediction = f(x) (Z' Z + lambda I)^{-1} Z' Y + b, without a."""
    learner = R2D2(MODEL, MeanSquaredError(), 2, 1.0, 1.0)
    params, x = start(learner), draw(3 * shots, INPUTS, seed=5)
    y, queries = draw(3 * shots, 2, seed=6), draw(4, INPUTS, seed=7)
    z = MODEL.apply(params, x)
    w = torch.linalg.solve(z.T @ z + math.exp(-0.7) * torch.eye(FEATURES).double(), z.T @ y)
    found = learner.predict(learner.adapt(params, Batch(x, y)), queries)
    assert_same(found, MODEL.apply(params, queries) @ w + 0.3)


def test_permuted_classes_permute_the_predictions() -> None:
    learner, episode = R2D2(MODEL, CrossEntropy(), WAYS, 1.0, 1.0), task(2)
    params, order = start(learner), torch.tensor([2, 0, 1])
    plain, permuted = (
        learner.predict(learner.adapt(params, Batch(episode.support.x, y)), episode.query.x)
        for y in (episode.support.y, order[episode.support.y])
    )
    assert_same(permuted[:, order], plain)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algo.ridge=0", r"algo\.ridge=0\.0: must be above 0"),
        ("algo.scale=-1", r"algo\.scale=-1\.0: must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        metarun.build_algorithm(metarun.compose(["algo=r2d2", override]))
