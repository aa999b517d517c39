"""The protocols that the penalties in `regularizers/` implement. All Omega are unweighted."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from metarun.types import Algorithm, Batch, Loss, Model, Params, Rates, Task


class Adaptation(NamedTuple):
    """One task's adaptation from theta to phi."""

    theta: Params
    phi: Params
    support: Batch
    query: Batch | None  # None inside of the inner loop
    model: Model
    loss: Loss
    own: Params  # the meta-parameters of the penalty itself, by their short names
    adapted: tuple[str, ...] | None = None  # name prefixes of the weights that the inner loop adapts; None: all


class WeightPenalty(Protocol):
    """Omega(w) of weights alone: of phi in the inner objective, of theta in the outer one. All Omega are unweighted."""

    def of(self, weights: Params) -> Tensor:
        """w -> a scalar."""


@runtime_checkable
class ProximalPenalty(WeightPenalty, Protocol):
    """One with a proximal operator, used in place of its gradient where `method` says so."""

    @property
    def method(self) -> str:
        """subgradient or prox."""

    @property
    def metric(self) -> str:
        """adaptive: each weight's threshold is its own step size times the weight of the penalty; plain: the rate's."""

    def target_names(self, weights: Params) -> list[str]:
        """The names of the penalised tensors."""

    def mask_zeros(self, weights: Params) -> Params:
        """True where the proximal operator holds a weight at zero, for the penalised tensors."""

    def shrink(self, weights: Params, thresholds: Rates, limit: float = math.inf) -> Params:
        """argmin_w Omega(w) + sum_j (w_j - weights_j)^2 / (2 thresholds_j), by at most about `limit` in each weight."""


@runtime_checkable
class AdaptationPenalty(Protocol):
    """Omega(theta, phi) of one task's adaptation: in the inner objective, or beside the query loss."""

    def between(self, at: Adaptation) -> Tensor:
        """A scalar."""


@runtime_checkable
class TaskPenalty(Protocol):
    """Omega of a batch of tasks together, in the outer objective."""

    def across(self, learner: Algorithm, params: Params, tasks: Task) -> Tensor:
        """theta, tasks with a leading T axis -> a scalar."""
