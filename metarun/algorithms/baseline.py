r"""Baseline and Baseline++ (Chen, Liu, Kira, Wang, Huang 2019, arXiv 1904.04232): an ordinary classifier's features,
and a new head fitted to each task.

    training   a classifier of all training classes, linear (Baseline) or of cosines (Baseline++): classifier.py
    test       w_0, then w_{k+1} = w_k - alpha grad [ L^S(w_k) + (lambda/2) |w_k|^2 ],   k = 0 .. T-1,
               L^S(w) the mean loss of the scores s_n(f(x)) of the support set;  logits of a query s_n(f(x)) at w_T

Symbols: f the network without its head, which a task leaves as it is; s the scores of classifier.py with w in the place
of v and b; alpha `inner_lr`, T `test_inner_steps`, lambda `head_decay`, a of cosines `scale`. The linear head starts
from 0, and that of cosines from the class means, whose order of labels has no effect; the steps are on the whole
support set, where the paper draws mini-batches of 4, from random weights and with momentum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from metarun.algorithms.classifier import check_classifier, differentiate_batch, init_classifier, score_classes
from metarun.algorithms.embeddings import class_means
from metarun.algorithms.inner_loop import descend, last, sgd
from metarun.compute.linalg import dot
from metarun.errors import require
from metarun.types import Batch, Kind, Loss, Metrics, Model, Params, Task


class FittedHead(NamedTuple):
    params: Params
    stats: Any  # that queries are normalised with
    head: Params  # weight [N, D], and bias [N] of a linear head


@dataclass(frozen=True)
class Baseline:
    """Train a classifier of all training classes; fit a new head on its features to each task."""

    model: Model
    loss: Loss
    ways: int
    classes: int  # of training
    classifier: str
    scale: float
    inner_lr: float
    test_inner_steps: int
    head_decay: float

    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    head: ClassVar[bool] = False
    numbered_classes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_classifier(self.classifier, self.scale)
        require(self.inner_lr > 0, "inner_lr", self.inner_lr, "must be above 0")
        require(self.test_inner_steps >= 1, "test_inner_steps", self.test_inner_steps, "must be at least 1")
        require(self.head_decay >= 0, "head_decay", self.head_decay, "must be at least 0")

    @property
    def inner_steps(self) -> int:
        return self.test_inner_steps

    def init(self, seed: int) -> Params:
        return self.model.init(seed) | init_classifier(self.classes, self.model.features, self.classifier, seed)

    def adapt(self, params: Params, support: Batch) -> FittedHead:
        return last(self.adaptations(params, support, self.test_inner_steps))

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[FittedHead]:
        z_SD, stats = self.model.apply(params, support.x), self.model.query_stats(params, support.x)

        def objective(head: Params, step: int) -> Tensor:
            scores = score_classes(z_SD, head["weight"], head.get("bias"), self.scale)
            return self.loss(scores, support.y) + self.head_decay / 2 * dot(head, head)

        for head in descend(objective, self._first(z_SD, support.y), sgd(self.inner_lr), steps):
            yield FittedHead(params, stats, head)

    def predict(self, adapted: FittedHead, x: Tensor) -> Tensor:
        return self.predict_states([adapted], x)[0]

    def predict_states(self, states: Sequence[FittedHead], x: Tensor) -> list[Tensor]:
        """The predictions of each of the heads on the same features."""
        z_MD = self.model.apply(states[0].params, x, states[0].stats)
        return [score_classes(z_MD, s.head["weight"], s.head.get("bias"), self.scale) for s in states]

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        return differentiate_batch(self, params, task, self.scale)

    def _first(self, z_SD: Tensor, y_S: Tensor) -> Params:
        """w_0."""
        means_ND = class_means(z_SD, y_S, self.ways)
        if self.classifier == "cosine":
            return {"weight": means_ND}
        return {"weight": 0 * means_ND, "bias": 0 * means_ND[:, 0]}
