r"""Fine-tuning of the whole network to a task, with the entropy of its queries: transductive fine-tuning (Dhillon,
Chaudhari, Ravichandran, Soatto 2020, arXiv 1909.02729).

    training   a linear classifier of all training classes (classifier.py)
    test       s(x; phi) = w z(x) + b,   z = f(x) / |f(x)|;   phi_0 = theta with w_n = c_n / |c_n| and b = 0,
               c_n = (1/K) sum_{(x, y) in S, y = n} f(x);   T times, two steps of Adam on phi = (f, w, b):
               one on L^S(phi), one on  beta mean_m H(softmax s(x_m; phi))

Symbols: f the network without its head; w [N, D], b [N]; x_m, m = 1 .. M the queries of the task, without their labels;
L^S the mean loss on the support set, H the entropy in nats; T `steps` at the rate `inner_lr`, beta `entropy_weight`.
beta = 0 leaves the second step out, which is ordinary fine-tuning, and not transductive. Without `whole_network` f
stays as it is, and w and b alone move.

`predict` does the descent, for the queries that it is given: it has their inputs and never their labels. The paper
takes the logits of the training classes through a ReLU for f, and augments the images of the task; here f ends in the
features. Adam is that of the inner loops here, without the mean of gradients (beta1 = 0; the paper has 0.9), and with
`norm=population` the statistics of normalisation stay those of training images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from metarun.algorithms.classifier import differentiate_batch, init_classifier
from metarun.algorithms.embeddings import class_means
from metarun.algorithms.inner_loop import adam, descend, last
from metarun.algorithms.losses import entropy
from metarun.errors import require
from metarun.types import HEAD, Batch, Kind, Loss, Metrics, Model, Params, Task

WEIGHT, BIAS = HEAD + "weight", HEAD + "bias"


class Labelled(NamedTuple):
    params: Params
    support: Batch


@dataclass(frozen=True)
class FineTuning:
    """Train a classifier of all training classes; fine-tune to a task by its support set and the entropy of queries."""

    model: Model
    loss: Loss
    ways: int
    classes: int  # of training
    inner_lr: float
    steps: int
    entropy_weight: float
    whole_network: bool

    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    head: ClassVar[bool] = False
    test_inner_steps: ClassVar[int] = 0
    numbered_classes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(0 < self.inner_lr < math.inf, "inner_lr", self.inner_lr, "must be above 0 and finite")
        require(self.steps >= 0, "steps", self.steps, "must be at least 0; 0 is the nearest class mean by cosines")
        needed = "must be at least 0 and finite; 0 leaves the queries out"
        require(0 <= self.entropy_weight < math.inf, "entropy_weight", self.entropy_weight, needed)

    @property
    def transductive(self) -> bool:
        return self.steps > 0 and self.entropy_weight > 0

    def init(self, seed: int) -> Params:
        return self.model.init(seed) | init_classifier(self.classes, self.model.features, "linear", seed)

    def adapt(self, params: Params, support: Batch) -> Labelled:
        return Labelled(params, support)

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Labelled]:
        yield self.adapt(params, support)

    def predict(self, adapted: Labelled, x: Tensor) -> Tensor:
        params, support = adapted

        def score_queries(phi: Params) -> Tensor:
            return score(self.model.apply(phi, x, self.model.query_stats(phi, support.x)), phi)

        def objective(phi: Params, step: int) -> Tensor:
            if step % parts:
                return self.entropy_weight * entropy(score_queries(phi))
            return self.loss(score(self.model.apply(phi, support.x), phi), support.y)

        means_ND = class_means(self.model.apply(params, support.x), support.y, self.ways)
        first = params | {WEIGHT: F.normalize(means_ND, dim=-1), BIAS: 0 * means_ND[:, 0]}
        parts = 2 if self.entropy_weight else 1
        rule = adam(self.inner_lr)._replace(adapted=None if self.whole_network else (HEAD,))
        return score_queries(last(descend(objective, first, rule, parts * self.steps)))

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        return differentiate_batch(self, params, task, 1.0)


def score(z_MD: Tensor, phi: Params) -> Tensor:
    """s [M, N]."""
    return F.linear(F.normalize(z_MD, dim=-1), phi[WEIGHT], phi[BIAS])
