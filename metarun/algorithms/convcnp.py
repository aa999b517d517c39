r"""Convolutional conditional neural processes of one input (Gordon et al. 2020, arXiv 1910.13556).

    density  d(t) = sum_{j in C} psi_in(t - x_j);    signal  s(t) = sum_{j in C} y_j psi_in(t - x_j) / (d(t) + 1e-8)
    h_g = [d(t_g), s(t_g)] on a grid t_g = low + g / density, g = 0 .. G-1;   u = CNN(h)
    r(x) = sum_g u_g psi_out(x - t_g);    [mu_t, s_t] = g(r(x_t))

Symbols: psi(a) = exp(-a^2 / (2 l^2)) with learned l_in and l_out, which start at two steps of the grid (meta-parameters
`learned.log_scale_in`, `learned.log_scale_out`); the CNN (models/grid_cnn.py) has `layers` of `width` channels and
`kernel` taps; all others those of conditional.py. The paper has no `sigma_floor`. The grid spans the inputs of the data
set and `margin` on both sides. A shift of all inputs and of the grid shifts the predictions. Beyond the grid r falls
to 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.algorithms.conditional import ConditionalProcess
from metarun.algorithms.contexts import Draws, Rows, check_network, check_sizes
from metarun.errors import UserError, require
from metarun.models.grid_cnn import GridCNN
from metarun.models.multi_network import MultiNetwork, multi_network
from metarun.types import LEARNED, Loss, NetworkFactory, Params

SCALE_IN, SCALE_OUT = (f"{LEARNED}log_scale_{end}" for end in ("in", "out"))
MOST_POINTS = 4096
EPS = 1e-8


@dataclass(frozen=True)
class GridReader:
    """Convolutions along a grid of inputs."""

    low: float
    spacing: float
    points: int  # G

    def init(self) -> Params:
        first = torch.tensor(math.log(2 * self.spacing))
        return {SCALE_IN: first, SCALE_OUT: first.clone()}

    def read(self, model: MultiNetwork, params: Params, context: Rows) -> Tensor:
        """The features u of the grid, [G, D]."""
        psi_SG = self._bumps(context.x, params[SCALE_IN]) * context.here[:, None]
        density_G = psi_SG.sum(0)
        signal_OG = context.y.T @ psi_SG / (density_G + EPS)
        return model.run("cnn", params, torch.cat([density_G[None], signal_OG])).T

    def describe(self, model: MultiNetwork, params: Params, u_GD: Tensor, x: Tensor) -> Tensor:
        return self._bumps(x, params[SCALE_OUT]) @ u_GD

    def summarize(self, u_GD: Tensor) -> Tensor:
        return u_GD.mean(0)

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
) -> ConditionalProcess:
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
    parts = multi_network(
        cnn=GridCNN(1 + outputs, width, kernel, layers), decoder=check_network(network((width,), 2 * outputs))
    )
    draws = Draws(1, min_shots, min_queries)
    return ConditionalProcess(parts, loss, draws, sigma_floor, GridReader(low, 1 / density, points))
