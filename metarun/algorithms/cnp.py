r"""Conditional neural processes (Garnelo et al. 2018, arXiv 1807.01613).

    r = mean_{j in C} h([x_j, y_j]);    [mu_t, s_t] = g([x_t, r])

Symbols: h `encoder`, a network of the chosen model's kind; the length of r `representation`; all others those of
conditional.py. Targets of a training task are its context and its query rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metarun.algorithms.conditional import ConditionalProcess
from metarun.algorithms.contexts import Draws, Rows, check_network, check_sizes, summarize
from metarun.models.multi_network import MultiNetwork, multi_network
from metarun.types import Loss, NetworkFactory, Params


class MeanReader:
    """The mean of the encoded rows, beside each target's x."""

    def init(self) -> Params:
        return {}

    def read(self, model: MultiNetwork, params: Params, context: Rows) -> Tensor:
        return summarize(model, params, context).r

    def describe(self, model: MultiNetwork, params: Params, r: Tensor, x: Tensor) -> Tensor:
        return torch.cat([x, r.expand(x.shape[0], -1)], -1)

    def summarize(self, r: Tensor) -> Tensor:
        return r


def cnp(
    network: NetworkFactory,
    input_shape: tuple[int, ...],
    outputs: int,
    loss: Loss,
    representation: int,
    sigma_floor: float,
    min_shots: int,
    min_queries: int,
) -> ConditionalProcess:
    """For inputs of one axis and `outputs` targets."""
    check_sizes(sigma_floor, representation=representation)
    (inputs,) = input_shape
    encoder = check_network(network((inputs + outputs,), representation))
    decoder = network((inputs + representation,), 2 * outputs)
    draws = Draws(inputs, min_shots, min_queries)
    parts = multi_network(encoder=encoder, decoder=decoder)
    return ConditionalProcess(parts, loss, draws, sigma_floor, MeanReader(), context_targets=True)
