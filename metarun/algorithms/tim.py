r"""TIM, transductive information maximization (Boudiaf et al. 2020, arXiv 2008.11297), by gradient descent (TIM-GD).

    training   a linear classifier of all training classes (classifier.py)
    test       p(n | x; w) = softmax_n( -(a/2) |w_n - z(x)|^2 ),   z = f(x) / |f(x)|
               w_0 = the class means of z over the support set;  T steps of Adam from w_0 on
               lambda L^S(w) - H(p_bar) + alpha mean_m H(p(. | x_m)),   p_bar = mean_m p(. | x_m)

Symbols: f the network without its head, which a task leaves as it is; x_m, m = 1 .. M the queries of the task, without
their labels; L^S the mean loss on the support set, H the entropy in nats; a `scale`, lambda `support_weight`, alpha
`entropy_weight`, T `steps` at the rate `inner_lr`. -H(p_bar) + mean_m H(p(. | x_m)) is minus the mutual information of
queries and labels: each query should be certain, and the classes equally frequent among them. The last holds in
episodes with as many queries of each class, and is wrong where it does not. T = 0 is the nearest class mean.

`predict` does the descent, for the queries that it is given: it has their inputs and never their labels. Adam is that
of the inner loops here, without the mean of gradients (beta1 = 0; the paper has 0.9).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.algorithms.classifier import differentiate_batch, init_classifier
from metarun.algorithms.embeddings import class_means, compare
from metarun.algorithms.inner_loop import adam, descend, last
from metarun.algorithms.losses import entropy
from metarun.errors import require
from metarun.types import Batch, Kind, Loss, Metrics, Model, Params, Task


class EmbeddedSupport(NamedTuple):
    params: Params
    stats: Any  # that queries are normalised with
    z: Tensor  # [S, D], of length 1
    y: Tensor  # [S]


@dataclass(frozen=True)
class TIM:
    """Train a classifier of all training classes; move class means to where a task's queries share information."""

    model: Model
    loss: Loss
    ways: int
    classes: int  # of training
    scale: float
    support_weight: float
    entropy_weight: float
    inner_lr: float
    steps: int

    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    head: ClassVar[bool] = False
    test_inner_steps: ClassVar[int] = 0
    numbered_classes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("scale", "inner_lr"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, value, "must be above 0 and finite")
        for name in ("support_weight", "entropy_weight"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "must be at least 0 and finite")
        require(self.steps >= 0, "steps", self.steps, "must be at least 0; 0 is the nearest class mean")

    @property
    def transductive(self) -> bool:
        return self.steps > 0

    def init(self, seed: int) -> Params:
        return self.model.init(seed) | init_classifier(self.classes, self.model.features, "linear", seed)

    def adapt(self, params: Params, support: Batch) -> EmbeddedSupport:
        z_SD = F.normalize(self.model.apply(params, support.x), dim=-1)
        return EmbeddedSupport(params, self.model.query_stats(params, support.x), z_SD, support.y)

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[EmbeddedSupport]:
        yield self.adapt(params, support)

    def predict(self, adapted: EmbeddedSupport, x: Tensor) -> Tensor:
        z_MD = F.normalize(self.model.apply(adapted.params, x, adapted.stats), dim=-1)

        def objective(weights: Params, step: int) -> Tensor:
            logits = self._score(z_MD, weights)
            fit = self.support_weight * self.loss(self._score(adapted.z, weights), adapted.y)
            return fit - marginal_entropy(logits) + self.entropy_weight * entropy(logits)

        first = {"weight": class_means(adapted.z, adapted.y, self.ways)}
        return self._score(z_MD, last(descend(objective, first, adam(self.inner_lr), self.steps)))

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        return differentiate_batch(self, params, task, 1.0)

    def _score(self, z_MD: Tensor, weights: Params) -> Tensor:
        return self.scale / 2 * compare(z_MD, weights["weight"], "euclidean")


def marginal_entropy(logits: Tensor) -> Tensor:
    """H(p_bar) in nats, p_bar the mean over rows of softmax(logits), logits [M, N]; finite where a class has p = 0."""
    log_p = torch.logsumexp(torch.log_softmax(logits, -1), 0) - math.log(len(logits))
    return -(log_p.exp() * log_p).sum()
