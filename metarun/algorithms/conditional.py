r"""Conditional processes: a Gaussian for each target, given a context, without latent variables.

    c = read(C);   [mu_t, s_t] = g(describe(c, x_t));   p(y_t | x_t, C) = N(mu_t, diag sigma_t^2),
    sigma_t = f + (1 - f) softplus(s_t);   loss = - mean over the targets t of log p(y_t | x_t, C)

Symbols: C the context (support set); read and describe those of a `Reader` (cnp.py, tnpd.py, convcnp.py); g the part
`decoder`, a network of the chosen model's kind; f `sigma_floor`, 0.1 as Garnelo et al. 2018 publish. Targets of a
training task are its query rows, with `context_targets` its context too; a test scores queries and context apart.
Sizes of training contexts: contexts.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from metarun.algorithms.contexts import Draws, Rows, concatenate, masked_mean
from metarun.algorithms.predictive import Gaussian, assess_gaussians, decoder_std
from metarun.compute import linalg
from metarun.models.multi_network import MultiNetwork
from metarun.types import Batch, Kind, Loss, Metrics, Params, PredictionKind, Task


class Reader(Protocol):
    """What lies between a context and the decoder. An encoded context is a tensor or a tuple of them."""

    def init(self) -> Params:
        """First values of meta-parameters beside the weights of the networks."""

    def read(self, model: MultiNetwork, params: Params, context: Rows) -> Any:
        """The encoded context."""

    def describe(self, model: MultiNetwork, params: Params, encoded: Any, x: Tensor) -> Tensor:
        """What the decoder is given of targets at x [M, d]: [M, D]."""

    def summarize(self, encoded: Any) -> Tensor:
        """The context as one vector [R]."""


class Encoded(NamedTuple):
    params: Params
    context: Any


@dataclass(frozen=True)
class ConditionalProcess:
    """Predict a Gaussian for each target."""

    model: MultiNetwork
    loss: Loss
    draws: Draws
    sigma_floor: float
    reader: Reader
    context_targets: bool = False

    kinds: ClassVar[tuple[Kind, ...]] = ("regression",)
    predicts: ClassVar[PredictionKind] = "gaussians"
    head: ClassVar[bool] = True
    test_inner_steps: ClassVar[int] = 0

    def init(self, seed: int) -> Params:
        return self.model.init(seed) | self.reader.init()

    def add_noise(self, params: Params, tasks: Task, seed: int, step: int, first: int = 0) -> tuple[Params, Task]:
        return params, self.draws.add(tasks, seed, step, first)

    def adapt(self, params: Params, support: Batch) -> Encoded:
        return self._read(params, self.draws.rows(support))

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Encoded]:
        yield self.adapt(params, support)

    def predict(self, adapted: Encoded, x: Tensor) -> Tensor:
        return torch.cat(self._gaussian(adapted, x), -1)

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        support, query = (self.draws.rows(batch) for batch in task)
        targets = concatenate(support, query) if self.context_targets else query

        def outer(params: Params) -> tuple[Tensor, Metrics]:
            logp = self._gaussian(self._read(params, support), targets.x).log_density(targets.y)
            loss = -masked_mean(logp, targets.here)
            return loss, {"loss": loss, self.loss.metric: masked_mean(logp[-len(query.x) :], query.here)}

        return linalg.differentiate(outer, params)

    def assess(self, adapted: Encoded, task: Task) -> Metrics:
        """The log-likelihood is exact."""
        query, context = (self._gaussian(adapted, batch.x) for batch in task[::-1])
        return assess_gaussians(query, context, task, self.loss.metric)

    def functions(self, adapted: Encoded, x: Tensor, count: int) -> Tensor:
        return self._gaussian(adapted, x).mu.expand(count, -1, -1)

    def encode(self, params: Params, rows: Batch) -> Tensor:
        return self.reader.summarize(self.adapt(params, rows).context)

    def _read(self, params: Params, context: Rows) -> Encoded:
        return Encoded(params, self.reader.read(self.model, params, context))

    def _gaussian(self, adapted: Encoded, x: Tensor) -> Gaussian:
        h_MD = self.reader.describe(self.model, adapted.params, adapted.context, x)
        mu, s = self.model.run("decoder", adapted.params, h_MD).chunk(2, -1)
        return Gaussian(mu, decoder_std(s, self.sigma_floor))
