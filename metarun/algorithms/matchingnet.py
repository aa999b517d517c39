r"""Matching networks (Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra 2016, arXiv 1606.04080).

    a(x, x_j) = softmax_j( c(f(x), g(x_j)) / tau );    p(y | x) = sum_j a(x, x_j) onehot(y_j)

with c the cosine (published) or minus the squared Euclidean distance. Symbols: c `distance`, tau `temperature`. The
paper's tau = 1 caps p at e/(e + 4/e) = 0.65 on 5 ways and 0.28 on 20, which a loss cannot get past;
the default is 0.1. With `fce` the embeddings see the whole support set (fully conditional embeddings, sections 2.1.1,
2.1.2 and A.1, A.2), which makes the result depend on the order of the support set:

    g(x_j, S) = h_fwd_j + h_bwd_j + g'(x_j)                                  (bidirectional LSTM over S)
    f(x, S):  h^_k, c_k = LSTM(f'(x), [h_{k-1}, r_{k-1}], c_{k-1});   h_k = h^_k + f'(x)
              r_k = sum_j softmax_j(h_k . g(x_j)) g(x_j);   the result is h_P after P `fce_steps`

The cells are written out: `torch.nn.LSTM` cannot be batched over per-task states by `vmap`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from metarun.algorithms import losses
from metarun.algorithms.embeddings import check_similarity, compare, embed_episode, one_hot
from metarun.compute import linalg
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
        return params | init_fce(self.model.features, seed) if self.fce else params

    def adapt(self, params: Params, support: Batch) -> Memory:
        z_SD = self.model.apply(params, support.x)
        return self._memory(params, z_SD, support.y, self.model.query_stats(params, support.x))

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Memory]:
        yield self.adapt(params, support)

    def predict(self, adapted: Memory, x: Tensor) -> Tensor:
        return self._log_probabilities(adapted, self.model.apply(adapted.params, x, adapted.stats))

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        def outer(params: Params) -> tuple[Tensor, Metrics]:
            z_SD, z_MD = embed_episode(self.model, params, task)
            memory = self._memory(params, z_SD, task.support.y, None)
            return losses.score_prediction(self, self._log_probabilities(memory, z_MD), task.query.y)

        return linalg.differentiate(outer, params)

    def _memory(self, params: Params, z_SD: Tensor, y_S: Tensor, stats: Any) -> Memory:
        keys_SD = embed_support(params, z_SD) if self.fce else z_SD
        return Memory(params, stats, keys_SD, one_hot(y_S, self.ways, like=z_SD))

    def _log_probabilities(self, memory: Memory, z_MD: Tensor) -> Tensor:
        """[M, D] -> log p [M, N]. As logits of a cross-entropy they give -log p, since sum_n p_n = 1."""
        if self.fce:
            z_MD = embed_query(memory.params, z_MD, memory.keys, self.fce_steps)
        log_a_MS = torch.log_softmax(compare(z_MD, memory.keys, self.distance) / self.temperature, -1)
        # log sum_j exp(log a_j) over the rows of each class, by a mask that adds -inf's finite stand-in.
        absent_SN = (1 - memory.labels) * torch.finfo(z_MD.dtype).min
        return torch.logsumexp(log_a_MS[:, :, None] + absent_SN[None], dim=1)


def init_fce(features: int, seed: int) -> Params:
    """Weights of the two directions over the support set and of the query's reader, uniform +-1/sqrt(D)."""
    generator = torch.Generator().manual_seed(seed ^ 0x5EED0FCE)  # not the stream that the embedding's weights are from
    # The reader's recurrent input is [h, r], so it is twice as wide.
    recurrent = {"fce.forward": features, "fce.backward": features, "fce.reader": 2 * features}
    params = {}
    for name, width in recurrent.items():
        shape = (4 * features, features + width)
        params[f"{name}.weight"] = (torch.rand(shape, generator=generator) * 2 - 1) / features**0.5
        params[f"{name}.bias"] = torch.zeros(4 * features)
    return params


def embed_support(params: Params, z_SD: Tensor) -> Tensor:
    """g(x_j, S) for every support row, [S, D]."""
    forward = _run_lstm(params, "fce.forward", z_SD)
    backward = _run_lstm(params, "fce.backward", z_SD.flip(0)).flip(0)
    return forward + backward + z_SD


def embed_query(params: Params, z_MD: Tensor, keys_SD: Tensor, steps: int) -> Tensor:
    """f(x, S) for every query row, [M, D]."""
    h = c = r = torch.zeros_like(z_MD)
    for _ in range(steps):
        hidden, c = _lstm_cell(params, "fce.reader", z_MD, torch.cat([h, r], -1), c)
        h = hidden + z_MD
        r = torch.softmax(h @ keys_SD.T, -1) @ keys_SD
    return h


def _run_lstm(params: Params, name: str, z_SD: Tensor) -> Tensor:
    h = c = torch.zeros_like(z_SD[0])
    states = []
    for z_D in z_SD:
        h, c = _lstm_cell(params, name, z_D, h, c)
        states.append(h)
    return torch.stack(states)


def _lstm_cell(params: Params, name: str, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One LSTM step: gates i, f, o and candidate g from [x, h]."""
    gates = torch.cat([x, h], -1) @ params[f"{name}.weight"].T + params[f"{name}.bias"]
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c
