r"""How much the losses of tasks depend on which of them a learner was trained on: mutual information, and a bound.

Of n pairs of tasks one of each is trained on, by fair bits S_i; l_b[i, j] in {0, 1} is the loss of query j of task b of
pair i. With D = l_1 - l_0 in {-1, 0, 1} and R independent draws of S and of the training for the same pairs:

    I[i, j]   = sum_{d, s} p(d, s) log (p(d, s) / p(d) p(s)),  p the shares among the draws                     nats
    bias[i, j] = (K_ds - K_d - K_s + 1) / 2R,  K the numbers of values that occur: what I has on average for nothing
    bound     = sqrt(2 mean_ij (I - bias)),  plugin_bound = mean_ij sqrt(2 I)
    gap       = mean loss of the tasks that were not trained on - mean loss of those that were

|E gap| <= mean_ij sqrt(2 I(D; S)) for the true I, at most sqrt(2 log 2) = 1.18. Both bounds are estimates of it: the
first has its bias taken out (Miller 1955) and the root of the mean, the largest of all with this mean; the second, the
mean of roots, is smaller for the same I, and about sqrt(2 / R) where the true I is 0.

Hellström and Durisi 2022, Evaluated CMI bounds for meta learning, arXiv 2210.06511, for whole tasks, the level of a
meta-learner; with the difference of losses for the pair of them: Wang and Mao 2023, arXiv 2302.02432, theorem 3.1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DIFFERENCES = (-1, 0, 1)


class Bound(NamedTuple):
    """Estimates of the bound on the gap, and the mean information that they are made of."""

    corrected: float
    plugin: float
    information: float  # nats, less its bias
    bias: float


def bound_gap(losses: Tensor, chosen: Tensor) -> Bound:
    """From losses [R, 2, n, M], 0 or 1, and the bits [R, n]."""
    information, bias = membership_information(losses[:, 1].int() - losses[:, 0].int(), chosen)
    corrected = float((information - bias).mean())
    plugin = float((2 * information).clamp(min=0).sqrt().mean())
    return Bound((2 * max(corrected, 0.0)) ** 0.5, plugin, corrected, float(bias.mean()))


def membership_information(difference: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """I and its bias, each [n, M], from D [R, n, M] and the bits [R, n]."""
    draws = len(difference)
    bits = chosen.bool()[..., None].expand_as(difference)
    cells = [(difference == d) & (bits == s) for d in DIFFERENCES for s in (False, True)]
    joint = torch.stack([cell.sum(0) for cell in cells]).unflatten(0, (len(DIFFERENCES), 2)).double() / draws
    of_difference, of_bit = joint.sum(1, keepdim=True), joint.sum(0, keepdim=True)
    information = torch.special.xlogy(joint, joint / (of_difference * of_bit).clamp(min=1e-300)).sum((0, 1))
    occupied = [(p > 0).sum((0, 1)).double() for p in (joint, of_difference, of_bit)]
    return information, (occupied[0] - occupied[1] - occupied[2] + 1) / (2 * draws)


def measure_gap(losses: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss of the tasks trained on and of the others, each [R]."""
    means = losses.double().mean(-1)  # [R, 2, n]
    bits = chosen.double()
    own = (bits * means[:, 1] + (1 - bits) * means[:, 0]).mean(1)
    return own, means.mean((1, 2)) * 2 - own
