r"""Convolutional conditional neural processes of one input (Gordon et al. 2020, arXiv 1910.13556).

    density  d(t) = sum_{j in C} psi_in(t - x_j);    signal  s(t) = sum_{j in C} y_j psi_in(t - x_j) / (d(t) + 1e-8)
    h_g = [d(t_g), s(t_g)] on a grid t_g = low + g / density, g = 0 .. G-1;   u = CNN(h)
    r(x) = sum_g u_g psi_out(x - t_g);    p(y_t | x_t, C) = N(mu_t, diag sigma_t^2),  [mu_t, s_t] = g(r(x_t)),
    sigma_t = f + (1 - f) softplus(s_t);  loss = - mean over the query rows t of log p(y_t | x_t, C)

Symbols: C the context (support set); psi(a) = exp(-a^2 / (2 l^2)) with learned l_in and l_out, which start at two steps
of the grid (meta-parameters `learned.log_scale_in`, `learned.log_scale_out`); g `decoder`, a network of the chosen
model's kind; the CNN (models/grid_cnn.py) has `layers` of `width` channels and `kernel` taps; f `sigma_floor`, 0.1 as
for the other processes here, where the paper has none. The grid spans the inputs of the data set and `margin` on both
sides. A shift of all inputs and of the grid shifts the predictions. Beyond the grid r falls to 0. Sizes of training
contexts: contexts.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from metarun.algorithms.contexts import Draws, Rows, check_network, check_sizes, masked_mean
from metarun.algorithms.predictive import Gaussian, assess_gaussians, decoder_std
from metarun.compute import linalg
from metarun.errors import UserError, require
from metarun.models.grid_cnn import GridCNN
from metarun.models.multi_network import MultiNetwork, multi_network
from metarun.types import LEARNED, Batch, Kind, Loss, Metrics, NetworkFactory, Params, PredictionKind, Task

SCALE_IN, SCALE_OUT = (f"{LEARNED}log_scale_{end}" for end in ("in", "out"))
MOST_POINTS = 4096
EPS = 1e-8


class GridFeatures(NamedTuple):
    params: Params
    u: Tensor  # [G, D]


@dataclass(frozen=True)
class ConvCNP:
    """Predict a Gaussian for each target from convolutions along a grid of inputs."""

    model: MultiNetwork
    loss: Loss
    draws: Draws
    sigma_floor: float
    low: float
    spacing: float
    points: int  # G

    kinds: ClassVar[tuple[Kind, ...]] = ("regression",)
    predicts: ClassVar[PredictionKind] = "gaussians"
    head: ClassVar[bool] = True
    test_inner_steps: ClassVar[int] = 0

    def init(self, seed: int) -> Params:
        first = torch.tensor(math.log(2 * self.spacing))
        return self.model.init(seed) | {SCALE_IN: first, SCALE_OUT: first.clone()}

    def add_noise(self, params: Params, tasks: Task, seed: int, step: int, first: int = 0) -> tuple[Params, Task]:
        return params, self.draws.add(tasks, seed, step, first)

    def adapt(self, params: Params, support: Batch) -> GridFeatures:
        return self._read(params, self.draws.rows(support))

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[GridFeatures]:
        yield self.adapt(params, support)

    def predict(self, adapted: GridFeatures, x: Tensor) -> Tensor:
        return torch.cat(self._gaussian(adapted, x), -1)

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        support, query = (self.draws.rows(batch) for batch in task)

        def outer(params: Params) -> tuple[Tensor, Metrics]:
            logp = self._gaussian(self._read(params, support), query.x).log_density(query.y)
            loss = -masked_mean(logp, query.here)
            return loss, {"loss": loss, self.loss.metric: -loss}

        return linalg.differentiate(outer, params)

    def assess(self, adapted: GridFeatures, task: Task) -> Metrics:
        """The log-likelihood is exact."""
        query, context = (self._gaussian(adapted, batch.x) for batch in task[::-1])
        return assess_gaussians(query, context, task, self.loss.metric)

    def functions(self, adapted: GridFeatures, x: Tensor, count: int) -> Tensor:
        return self._gaussian(adapted, x).mu.expand(count, -1, -1)

    def _read(self, params: Params, rows: Rows) -> GridFeatures:
        psi_SG = self._bumps(rows.x, params[SCALE_IN]) * rows.here[:, None]
        density_G = psi_SG.sum(0)
        signal_OG = rows.y.T @ psi_SG / (density_G + EPS)
        u_DG = self.model.run("cnn", params, torch.cat([density_G[None], signal_OG]))
        return GridFeatures(params, u_DG.T)

    def _gaussian(self, adapted: GridFeatures, x: Tensor) -> Gaussian:
        r_MD = self._bumps(x, adapted.params[SCALE_OUT]) @ adapted.u
        mu, s = self.model.run("decoder", adapted.params, r_MD).chunk(2, -1)
        return Gaussian(mu, decoder_std(s, self.sigma_floor))

    def _bumps(self, x: Tensor, log_scale: Tensor) -> Tensor:
        """psi at the distances of the rows x [S, 1] to the grid, [S, G]."""
        grid_G = self.low + self.spacing * torch.arange(self.points, dtype=x.dtype, device=x.device)
        return torch.exp(-0.5 * ((x - grid_G) / log_scale.exp()).square())


def convcnp(
    network: NetworkFactory,
    input_shape: tuple[int, ...],
    outputs: int,
    reference_inputs: Tensor,
    loss: Loss,
    density: float,
    margin: float,
    width: int,
    kernel: int,
    layers: int,
    sigma_floor: float,
    min_shots: int,
    min_queries: int,
) -> ConvCNP:
    """For one input and `outputs` targets."""
    check_sizes(sigma_floor)
    require(0 < density < math.inf, "density", density, "must be above 0 and finite (grid points for each unit of x)")
    require(0 <= margin < math.inf, "margin", margin, "must be at least 0 and finite (units of x beyond the data)")
    if input_shape != (1,):
        found = f"these have {input_shape[0]}" if len(input_shape) == 1 else f"these are of shape {[*input_shape]}"
        raise UserError(f"algo=convcnp: needs data with one input, {found}; choices: algo=cnp, algo=tnpd, algo=anp")
    low, high = float(reference_inputs.min()) - margin, float(reference_inputs.max()) + margin
    points = math.ceil((high - low) * density) + 1
    needed = f"makes {points} grid points from {low:.4g} to {high:.4g}; at most {MOST_POINTS}"
    require(points <= MOST_POINTS, "density", density, needed)
    cnn = GridCNN(1 + outputs, width, kernel, layers)
    decoder = check_network(network((width,), 2 * outputs))
    draws = Draws(1, min_shots, min_queries)
    return ConvCNP(multi_network(cnn=cnn, decoder=decoder), loss, draws, sigma_floor, low, 1 / density, points)
