"""Prototypical and matching networks as plain torch, an episode after the other.

After the loss of prototypical-networks (github.com/jakesnell/prototypical-networks; support and query in one pass,
squared distances from expanded differences) and a common pytorch port of matching networks (cosine attention, then the
logarithm of the summed probabilities), in words of our own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers import torch_nets
from benchmarks.peers.tasks import Work

Weights = dict[str, Tensor]


def learner(name: str) -> Callable[..., tuple[Tensor, Weights]]:
    """The function of one task for this algorithm."""
    score = {"ProtoNet": prototypes, "MatchingNet": attention}[name]

    def per_task(work: Work, theta: Weights, task: tuple[Tensor, ...]) -> tuple[Tensor, Weights]:
        support_x, support_y, query_x, query_y = task
        z = torch_nets.functional(work, theta, torch.cat([support_x, query_x]))
        z_support, z_query = z[: len(support_x)], z[len(support_x) :]
        log_p = score(z_support, support_y, z_query, work.ways, work.algo)
        loss = F.nll_loss(log_p, query_y)
        found = torch.autograd.grad(loss, list(theta.values()))
        return loss, dict(zip(theta, found, strict=True))

    return per_task


def prototypes(z_support: Tensor, y: Tensor, z_query: Tensor, ways: int, algo: dict[str, Any]) -> Tensor:
    """Squared Euclidean distance to the class means."""
    centres = torch.stack([z_support[y == n].mean(0) for n in range(ways)])
    rows, columns = len(z_query), len(centres)
    distance = (z_query[:, None].expand(rows, columns, -1) - centres[None].expand(rows, columns, -1)).pow(2).sum(2)
    return torch.log_softmax(-distance / algo["temperature"], 1)


def attention(z_support: Tensor, y: Tensor, z_query: Tensor, ways: int, algo: dict[str, Any]) -> Tensor:
    """Softmax over cosines to all support rows, summed within each class."""
    cosine = F.normalize(z_query, dim=1) @ F.normalize(z_support, dim=1).T
    weights = torch.softmax(cosine / algo["temperature"], 1)
    return torch.log(weights @ F.one_hot(y, ways).to(weights.dtype))
