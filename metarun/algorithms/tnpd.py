r"""Transformer neural processes with independent targets, TNP-D (Nguyen and Grover 2022, arXiv 2207.04179).

    tokens   e([x_j, y_j]) of the context C,  e([x_t, 0]) of the targets;   h_t = the transformer's output for target t
    p(y_t | x_t, C) = N(mu_t, diag sigma_t^2),  [mu_t, s_t] = g(h_t),  sigma_t = f + (1 - f) softplus(s_t)
    loss = - mean over the query rows t of log p(y_t | x_t, C)

Symbols: C the context (support set); e `embed` and g `decoder`, networks of the chosen model's kind; the transformer
(models/set_transformer.py) has `layers` of `width` numbers and `heads`; f `sigma_floor`, 0.1 as for the other processes
here, where the paper has none. Sizes of training contexts: contexts.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from metarun.algorithms.contexts import Draws, Rows, check_network, check_sizes, masked_mean
from metarun.algorithms.predictive import Gaussian, assess_gaussians, decoder_std
from metarun.compute import linalg
from metarun.models.multi_network import MultiNetwork, multi_network
from metarun.models.set_transformer import SetTransformer
from metarun.types import Batch, Kind, Loss, Metrics, NetworkFactory, Params, PredictionKind, Task


class Context(NamedTuple):
    params: Params
    tokens: Tensor  # [S, D]
    here: Tensor  # [S]
    blank: Tensor  # zeros in place of a target's y, [d_out]


@dataclass(frozen=True)
class TNPD:
    """Predict a Gaussian for each target by a transformer over the context and that target."""

    model: MultiNetwork
    loss: Loss
    draws: Draws
    sigma_floor: float

    kinds: ClassVar[tuple[Kind, ...]] = ("regression",)
    predicts: ClassVar[PredictionKind] = "gaussians"
    head: ClassVar[bool] = True
    test_inner_steps: ClassVar[int] = 0

    def init(self, seed: int) -> Params:
        return self.model.init(seed)

    def add_noise(self, params: Params, tasks: Task, seed: int, step: int, first: int = 0) -> tuple[Params, Task]:
        return params, self.draws.add(tasks, seed, step, first)

    def adapt(self, params: Params, support: Batch) -> Context:
        return self._read(params, self.draws.rows(support))

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Context]:
        yield self.adapt(params, support)

    def predict(self, adapted: Context, x: Tensor) -> Tensor:
        return torch.cat(self._gaussian(adapted, x), -1)

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        support, query = (self.draws.rows(batch) for batch in task)

        def outer(params: Params) -> tuple[Tensor, Metrics]:
            logp = self._gaussian(self._read(params, support), query.x).log_density(query.y)
            loss = -masked_mean(logp, query.here)
            return loss, {"loss": loss, self.loss.metric: -loss}

        return linalg.differentiate(outer, params)

    def assess(self, adapted: Context, task: Task) -> Metrics:
        """The log-likelihood is exact."""
        query, context = (self._gaussian(adapted, batch.x) for batch in task[::-1])
        return assess_gaussians(query, context, task, self.loss.metric)

    def functions(self, adapted: Context, x: Tensor, count: int) -> Tensor:
        return self._gaussian(adapted, x).mu.expand(count, -1, -1)

    def _read(self, params: Params, rows: Rows) -> Context:
        tokens = self.model.run("embed", params, torch.cat([rows.x, rows.y], -1))
        return Context(params, tokens, rows.here, torch.zeros_like(rows.y[0]))

    def _gaussian(self, adapted: Context, x: Tensor) -> Gaussian:
        rows = torch.cat([x, adapted.blank.expand(x.shape[0], -1)], -1)
        tokens = self.model.run("embed", adapted.params, rows)
        h_MD = self.model.run("transformer", adapted.params, adapted.tokens, adapted.here, tokens)
        mu, s = self.model.run("decoder", adapted.params, h_MD).chunk(2, -1)
        return Gaussian(mu, decoder_std(s, self.sigma_floor))


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
) -> TNPD:
    """For inputs of one axis and `outputs` targets."""
    check_sizes(sigma_floor, width=width)
    (inputs,) = input_shape
    parts = {
        "embed": check_network(network((inputs + outputs,), width)),
        "transformer": SetTransformer(width, heads, layers),
        "decoder": network((width,), 2 * outputs),
    }
    return TNPD(multi_network(**parts), loss, Draws(inputs, min_shots, min_queries), sigma_floor)
