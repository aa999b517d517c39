r"""Transformer neural processes with independent targets, TNP-D (Nguyen and Grover 2022, arXiv 2207.04179).

    tokens   e([x_j, y_j]) of the context C,  e([x_t, 0]) of the targets
    [mu_t, s_t] = g(h_t),   h_t the transformer's output for target t

Symbols: e `embed`, a network of the chosen model's kind; the transformer (models/set_transformer.py) has `layers` of
`width` numbers and `heads`; all others those of conditional.py. The paper has no `sigma_floor`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metarun.algorithms.conditional import ConditionalProcess
from metarun.algorithms.contexts import Draws, Rows, check_network, check_sizes, masked_mean
from metarun.models.multi_network import MultiNetwork, multi_network
from metarun.models.set_transformer import SetTransformer
from metarun.types import Loss, NetworkFactory, Params


class Tokens(NamedTuple):
    embedded: Tensor  # [S, D]
    here: Tensor  # [S]
    blank: Tensor  # zeros in place of a target's y, [d_out]


class TransformerReader:
    """Attention of each target over the rows of the context."""

    def init(self) -> Params:
        return {}

    def read(self, model: MultiNetwork, params: Params, context: Rows) -> Tokens:
        embedded = model.run("embed", params, torch.cat([context.x, context.y], -1))
        return Tokens(embedded, context.here, torch.zeros_like(context.y[0]))

    def describe(self, model: MultiNetwork, params: Params, tokens: Tokens, x: Tensor) -> Tensor:
        rows = torch.cat([x, tokens.blank.expand(x.shape[0], -1)], -1)
        targets = model.run("embed", params, rows)
        return model.run("transformer", params, tokens.embedded, tokens.here, targets)

    def summarize(self, tokens: Tokens) -> Tensor:
        return masked_mean(tokens.embedded, tokens.here)


def tnpd(
    network: NetworkFactory,
    input_shape: tuple[int, ...],
    outputs: int,
    loss: Loss,
    width: int,
    heads: int,
    layers: int,
    sigma_floor: float,
    min_shots: int,
    min_queries: int,
) -> ConditionalProcess:
    """For inputs of one axis and `outputs` targets."""
    check_sizes(sigma_floor, width=width)
    (inputs,) = input_shape
    parts = multi_network(
        embed=check_network(network((inputs + outputs,), width)),
        transformer=SetTransformer(width, heads, layers),
        decoder=network((width,), 2 * outputs),
    )
    draws = Draws(inputs, min_shots, min_queries)
    return ConditionalProcess(parts, loss, draws, sigma_floor, TransformerReader())
