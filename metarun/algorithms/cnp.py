r"""Conditional neural processes (Garnelo et al. 2018, arXiv 1807.01613).

    r = mean_{j in C} h([x_j, y_j]);    p(y_t | x_t, C) = N(mu_t, diag sigma_t^2),  [mu_t, s_t] = g([x_t, r]),
    sigma_t = f + (1 - f) softplus(s_t);    loss = - mean over the targets t of log p(y_t | x_t, C)

Symbols: C the context (support set), h `encoder`, g `decoder`, networks of the chosen model's kind; the length of r
`representation`, f `sigma_floor` (0.1 as published). Targets of a training task are its context and its query rows; a
test scores queries and context apart. Sizes of training contexts: contexts.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metarun.algorithms.contexts import Draws, Summary, check_network, check_sizes, concatenate, masked_mean, summarize
from metarun.algorithms.predictive import Gaussian, assess_gaussians, decoder_std
from metarun.compute import linalg
from metarun.models.multi_network import MultiNetwork, multi_network
from metarun.types import Batch, Kind, Loss, Metrics, NetworkFactory, Params, PredictionKind, Task


@dataclass(frozen=True)
class CNP:
    """Predict a Gaussian for each target from the mean of the encoded context."""

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

    def adapt(self, params: Params, support: Batch) -> Summary:
        return summarize(self.model, params, self.draws.rows(support))

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Summary]:
        yield self.adapt(params, support)

    def predict(self, adapted: Summary, x: Tensor) -> Tensor:
        return torch.cat(self._gaussian(adapted, x), -1)

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        support, query = (self.draws.rows(batch) for batch in task)

        def outer(params: Params) -> tuple[Tensor, Metrics]:
            targets = concatenate(support, query)
            logp = self._gaussian(summarize(self.model, params, support), targets.x).log_density(targets.y)
            loss = -masked_mean(logp, targets.here)
            return loss, {"loss": loss, self.loss.metric: masked_mean(logp[len(support.x) :], query.here)}

        return linalg.differentiate(outer, params)

    def assess(self, adapted: Summary, task: Task) -> Metrics:
        """The log-likelihood is exact."""
        query, context = (self._gaussian(adapted, batch.x) for batch in task[::-1])
        return assess_gaussians(query, context, task, self.loss.metric)

    def functions(self, adapted: Summary, x: Tensor, count: int) -> Tensor:
        return self._gaussian(adapted, x).mu.expand(count, -1, -1)

    def encode(self, params: Params, rows: Batch) -> Tensor:
        return self.adapt(params, rows).r

    def _gaussian(self, adapted: Summary, x: Tensor) -> Gaussian:
        rows = torch.cat([x, adapted.r.expand(x.shape[0], -1)], -1)
        mu, s = self.model.run("decoder", adapted.params, rows).chunk(2, -1)
        return Gaussian(mu, decoder_std(s, self.sigma_floor))


def cnp(
    network: NetworkFactory,
    input_shape: tuple[int, ...],
    outputs: int,
    loss: Loss,
    representation: int,
    sigma_floor: float,
    min_shots: int,
    min_queries: int,
) -> CNP:
    """For inputs of one axis and `outputs` targets."""
    check_sizes(sigma_floor, representation=representation)
    (inputs,) = input_shape
    encoder = check_network(network((inputs + outputs,), representation))
    decoder = network((inputs + representation,), 2 * outputs)
    return CNP(
        multi_network(encoder=encoder, decoder=decoder), loss, Draws(inputs, min_shots, min_queries), sigma_floor
    )
