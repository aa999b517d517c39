"""How metric learners compare embeddings."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from metarun.errors import require

DISTANCES = ("euclidean", "cosine")


def check_similarity(distance: str, temperature: float) -> None:
    require(distance in DISTANCES, "distance", distance, "choices: " + ", ".join(DISTANCES))
    require(temperature > 0, "temperature", temperature, "must be above 0")


def similarity(a_MD: Tensor, b_ND: Tensor, distance: str) -> Tensor:
    """[M, D], [N, D] -> [M, N]: minus the squared Euclidean distance (summed over D), or the cosine."""
    if distance == "cosine":
        return F.normalize(a_MD, dim=-1) @ F.normalize(b_ND, dim=-1).T
    # Differences first: |a|^2 - 2 a.b + |b|^2 cancels badly in float32 when embeddings are close.
    return -(a_MD[:, None] - b_ND[None]).square().sum(-1)
