r"""Matching networks (Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra 2016, arXiv 1606.04080).

    a(x, x_j) = softmax_j( c(f(x), g(x_j)) / tau );    p(y | x) = sum_j a(x, x_j) onehot(y_j)

with c the cosine (published) or minus the squared Euclidean distance. Symbols: c `distance`, tau `temperature`. The
paper's tau = 1 caps p at e/(e + 4/e) = 0.65 on 5 ways and 0.28 on 20, which a loss cannot get past;
the default is 0.1. With `fce` the embeddings see the whole support set (fully conditional
embeddings, `fce.py`), which makes the result depend on the order of the support set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from metarun.algorithms import common, fce
from metarun.algorithms.similarity import check_similarity, similarity
from metarun.errors import require
from metarun.types import Batch, Kind, Loss, Metrics, Model, Params, Task


class Memory(NamedTuple):
    params: Params
    stats: Any  # that queries are normalised with
    keys: Tensor  # [S, D]
    labels: Tensor  # [S, N] one-hot


@dataclass(frozen=True)
class MatchingNet:
    """Classify by attention over the labelled support set in a learned embedding."""

    model: Model
    loss: Loss
    ways: int
    distance: str
    temperature: float
    fce: bool
    fce_steps: int

    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    head: ClassVar[bool] = False
    test_inner_steps: ClassVar[int] = 0

    def __post_init__(self) -> None:
        check_similarity(self.distance, self.temperature)
        require(self.fce_steps >= 1, "fce_steps", self.fce_steps, "must be at least 1")

    def init(self, seed: int) -> Params:
        params = self.model.init(seed)
        return params | fce.init(self.model.features, seed) if self.fce else params

    def adapt(self, params: Params, support: Batch) -> Memory:
        z_SD = self.model.apply(params, support.x)
        return self._memory(params, z_SD, support.y, self.model.query_stats(params, support.x))

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Memory]:
        yield self.adapt(params, support)

    def predict(self, adapted: Memory, x: Tensor) -> Tensor:
        return self._log_probabilities(adapted, self.model.apply(adapted.params, x, adapted.stats))

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        def outer(params: Params) -> tuple[Tensor, Metrics]:
            z_SD, z_MD = common.embed_together(self.model, params, task)
            memory = self._memory(params, z_SD, task.support.y, None)
            return common.score_prediction(self, self._log_probabilities(memory, z_MD), task.query.y)

        return common.differentiate(outer, params)

    def _memory(self, params: Params, z_SD: Tensor, y_S: Tensor, stats: Any) -> Memory:
        keys_SD = fce.support_context(params, z_SD) if self.fce else z_SD
        return Memory(params, stats, keys_SD, common.one_hot(y_S, self.ways, like=z_SD))

    def _log_probabilities(self, memory: Memory, z_MD: Tensor) -> Tensor:
        """[M, D] -> log p [M, N]. As logits of a cross-entropy they give -log p, since sum_n p_n = 1."""
        if self.fce:
            z_MD = fce.query_context(memory.params, z_MD, memory.keys, self.fce_steps)
        log_a_MS = torch.log_softmax(similarity(z_MD, memory.keys, self.distance) / self.temperature, -1)
        # log sum_j exp(log a_j) over the rows of each class, by a mask that adds -inf's finite stand-in.
        absent_SN = (1 - memory.labels) * torch.finfo(z_MD.dtype).min
        return torch.logsumexp(log_a_MS[:, :, None] + absent_SN[None], dim=1)
