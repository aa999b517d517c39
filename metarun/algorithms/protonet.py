r"""Prototypical networks (Snell, Swersky, Zemel 2017, arXiv 1703.05175).

    c_n = (1/K) sum_{(x, y) in S, y = n} f(x);    p(y = n | x) = softmax_n( -d(f(x), c_n) / tau )

with d the squared Euclidean distance (published) or minus the cosine. Symbols: f the embedding
network without head, d `distance`, tau `temperature` (1 as published).
Training may use more ways than testing (`algo.train_ways`; the paper: 60 on Omniglot).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from metarun.algorithms import losses
from metarun.algorithms.embeddings import Prototypes, check_similarity, class_means, compare, embed_episode
from metarun.compute import linalg
from metarun.types import Batch, Kind, Loss, Metrics, Model, Params, Task


@dataclass(frozen=True)
class ProtoNet:
    """Classify by the nearest class mean in a learned embedding."""

    model: Model
    loss: Loss
    ways: int
    distance: str
    temperature: float

    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    head: ClassVar[bool] = False
    test_inner_steps: ClassVar[int] = 0

    def __post_init__(self) -> None:
        check_similarity(self.distance, self.temperature)

    def init(self, seed: int) -> Params:
        return self.model.init(seed)

    def adapt(self, params: Params, support: Batch) -> Prototypes:
        centres = class_means(self.model.apply(params, support.x), support.y, self.ways)
        return Prototypes(params, self.model.query_stats(params, support.x), centres)

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Prototypes]:
        yield self.adapt(params, support)

    def predict(self, adapted: Prototypes, x: Tensor) -> Tensor:
        z_MD = self.model.apply(adapted.params, x, adapted.stats)
        return self._logits(z_MD, adapted.centres)

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        def outer(params: Params) -> tuple[Tensor, Metrics]:
            z_SD, z_MD = embed_episode(self.model, params, task)
            centres = class_means(z_SD, task.support.y, self.ways)
            return losses.score_prediction(self, self._logits(z_MD, centres), task.query.y)

        return linalg.differentiate(outer, params)

    def _logits(self, z_MD: Tensor, centre_ND: Tensor) -> Tensor:
        return compare(z_MD, centre_ND, self.distance) / self.temperature
