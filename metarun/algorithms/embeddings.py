"""How metric learners embed an episode and compare embeddings."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.errors import require
from metarun.types import Model, Params, Task


class Prototypes(NamedTuple):
    """What a classifier by class means keeps of a support set."""

    params: Params
    stats: Any  # that queries are normalised with
    centres: Tensor  # [N, D]


DISTANCES = ("euclidean", "cosine")


def check_similarity(distance: str, temperature: float) -> None:
    require(distance in DISTANCES, "distance", distance, "choices: " + ", ".join(DISTANCES))
    require(temperature > 0, "temperature", temperature, "must be above 0")


def compare(a_MD: Tensor, b_ND: Tensor, distance: str) -> Tensor:
    """[M, D], [N, D] -> [M, N]: minus the squared Euclidean distance (summed over D), or the cosine."""
    if distance == "cosine":
        return F.normalize(a_MD, dim=-1) @ F.normalize(b_ND, dim=-1).T
    # Differences first: |a|^2 - 2 a.b + |b|^2 cancels badly in float32 when embeddings are close.
    return -(a_MD[:, None] - b_ND[None]).square().sum(-1)


def embed_episode(model: Model, params: Params, task: Task) -> tuple[Tensor, Tensor]:
    """Embeddings of support and query, [S, D] and [M, D].

    One pass, so that batch statistics are those of the whole episode, unless the model normalises
    queries with the support set's statistics.
    """
    support_x, query_x = task.support.x, task.query.x
    stats = model.query_stats(params, support_x)
    if stats is not None:
        return model.apply(params, support_x), model.apply(params, query_x, stats)
    z = model.apply(params, torch.cat([support_x, query_x]))
    return z[: len(support_x)], z[len(support_x) :]


def class_means(z_SD: Tensor, y_S: Tensor, ways: int) -> Tensor:
    """c_n, the mean of the rows of class n: [N, D]."""
    members_NS = one_hot(y_S, ways, like=z_SD).T
    return members_NS @ z_SD / members_NS.sum(1, keepdim=True)


def one_hot(y: Tensor, ways: int, like: Tensor) -> Tensor:
    """Labels [S] -> [S, N]; by comparison, which `vmap` can batch."""
    return (y[:, None] == torch.arange(ways, device=y.device)).to(like.dtype)
