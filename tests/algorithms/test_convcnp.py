"""ConvCNP: against sums written out, its translation equivariance, and the grid that follows the data."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import metarun
from metarun.algorithms.conditional import ConditionalProcess
from metarun.algorithms.convcnp import EPS, SCALE_IN, SCALE_OUT, GridReader, convcnp
from metarun.algorithms.losses import GaussianLikelihood
from metarun.errors import UserError
from metarun.models.mlp import mlp
from metarun.training.experiment import assemble
from metarun.types import Batch, Params

SIZES: dict[str, Any] = {"width": 3, "kernel": 3, "layers": 2, "sigma_floor": 0.1, "min_shots": 1, "min_queries": 1}


def network(inputs: tuple[int, ...], outputs: int | None) -> Any:
    return mlp(inputs, outputs, (5,), "none")


def build(
    outputs: int = 1, density: float = 8.0, margin: float = 4.0, low: float = -1.0, high: float = 1.0
) -> ConditionalProcess:
    ends = torch.tensor([[low], [high]])
    return convcnp(network, (1,), outputs, ends, GaussianLikelihood(), density, margin, **SIZES)


def weights(learner: ConditionalProcess) -> Params:
    """Of a longer readout than the first one, so that it is told from that of the context."""
    theta = {name: value.double() for name, value in learner.init(0).items()}
    return theta | {SCALE_OUT: theta[SCALE_OUT] + 0.3}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_predictions_are_those_of_sums_written_out() -> None:
    """Two outputs, in numpy: bumps, taps of the convolution and readout one by one."""
    learner = build(outputs=2, density=4.0, margin=1.0)
    theta, x, y, at = weights(learner), draw(5, 1, seed=1).tanh(), draw(5, 2, seed=2), draw(4, 1, seed=3).tanh()
    grid = np.array([-2 + g / 4 for g in range(17)])
    assert learner.reader == GridReader(-2.0, 0.25, 17)
    scale_in, scale_out = (math.exp(float(theta[name])) for name in (SCALE_IN, SCALE_OUT))
    bumps = np.exp(-((grid[:, None] - x[:, 0].numpy()) ** 2) / (2 * scale_in**2))  # [G, S]
    density = bumps.sum(1)
    h = np.stack([density, *(bumps @ y.numpy() / (density[:, None] + EPS)).T])
    for layer in range(2):
        w, b = (theta[f"cnn.layer{layer}.{name}"].numpy() for name in ("weight", "shift"))
        padded = np.pad(np.maximum(h, 0) if layer else h, ((0, 0), (1, 1)))
        taps = [np.einsum("oc,cg->og", w[:, :, k], padded[:, k : k + len(grid)]) for k in range(3)]
        h = sum(taps) + b[:, None]
    r = np.exp(-((at.numpy() - grid) ** 2) / (2 * scale_out**2)) @ h.T
    decoder = {name.removeprefix("decoder."): value for name, value in theta.items() if name.startswith("decoder.")}
    found = network((3,), 4).apply(decoder, torch.from_numpy(r))
    mu, sigma = found[:, :2], 0.1 + 0.9 * torch.log1p(found[:, 2:].exp())
    predicted = learner.predict(learner.adapt(theta, Batch(x, y)), at)
    torch.testing.assert_close(predicted, torch.cat([mu, sigma], 1), rtol=1e-12, atol=1e-12)


def predict(learner: ConditionalProcess, shift: float) -> Tensor:
    x, y, at = draw(6, 1, seed=4).tanh(), draw(6, 1, seed=5), draw(7, 1, seed=6).tanh()
    return learner.predict(learner.adapt(weights(learner), Batch(x + shift, y)), at + shift)


@pytest.mark.parametrize("steps", [-16, 3, 40])
def test_predictions_move_with_the_inputs(steps: int) -> None:
    """By multiples of the grid's spacing: with the grid, and on a grid that stays, whose ends are out of reach."""
    learner = build(margin=12.0)
    grid: Any = learner.reader
    shift = steps * grid.spacing
    expected = predict(learner, 0.0)
    for at in (replace(learner, reader=replace(grid, low=grid.low + shift)), learner):
        torch.testing.assert_close(predict(at, shift), expected, rtol=1e-12, atol=1e-12)
    assert float((predict(learner, shift + grid.spacing / 2) - expected).abs().max()) > 1e-6


def test_the_grid_is_that_of_the_data_and_the_weights_are_not() -> None:
    """So that a run can be tested on a wider range than it was trained on."""
    narrow, wide = (
        assemble(metarun.compose(["algo=convcnp", "data=gp", *more])) for more in ((), ("data.x_range=[-4,6]",))
    )
    for experiment, low, points in ((narrow, -2.5, 81), (wide, -4.5, 177)):
        learner: Any = experiment.algorithm
        grid = learner.reader
        assert (grid.low, grid.points) == (pytest.approx(low), points)
    shapes = [{k: v.shape for k, v in experiment.initial_params().items()} for experiment in (narrow, wide)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data=linear", "data.features=3"],
            "algo=convcnp: needs data with one input, these have 3; choices: algo=cnp, ",
        ),
        (["data=gp", "algo.kernel=4"], r"algo\.kernel=4: must be an odd number"),
        (["data=gp", "algo.density=0"], r"algo\.density=0\.0: must be above 0"),
        (
            ["data=gp", "algo.density=5000"],
            r"algo\.density=5000\.0: makes 25001 grid points from -2\.5 to 2\.5; at most",
        ),
        (["data=gp", "model.norm=batch"], r"model\.norm=batch: must be one of none, layer"),
    ],
)
def test_mistakes_are_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        assemble(metarun.compose(["algo=convcnp", *overrides]))
