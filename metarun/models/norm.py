"""Normalisation without running statistics, which per-task weights under `vmap` could not own.

batch       the statistics of the batch at hand, at test too: queries of a task see each other (transductive)
support     queries are normalised with the support set's statistics (not transductive)
population  the batch's while training; at evaluation fixed ones, measured layer by layer on a sample of training images
group       8 groups of channels (or as many as divide them), per example
layer       all channels together, per example
none        only a learned shift
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.errors import require

NORMS = ("batch", "support", "population", "group", "layer", "none")
BATCH_NORMS = ("batch", "support", "population")
EPS = 1e-5

Moments = tuple[Tensor, Tensor]
"""Mean and variance of each channel, [C] and [C]."""


def check_norm(norm: str) -> None:
    require(norm in NORMS, "norm", norm, "choices: " + ", ".join(NORMS))


def moments(h: Tensor) -> Moments:
    """Mean and biased variance over all axes but the channels, h [B, C, ...]."""
    axes = [0, *range(2, h.ndim)]
    variance, mean = torch.var_mean(h, axes, correction=0)
    return mean, variance


def normalise(h: Tensor, gain: Tensor | None, shift: Tensor, norm: str, given: Moments | None) -> Tensor:
    """h [B, C, ...] -> the same shape; `given` replaces the moments of the batch at hand. Only `none` has no gain."""
    if norm == "none" or gain is None:
        return h + _per_channel(shift, h)
    if norm not in BATCH_NORMS:
        return F.group_norm(h, 1 if norm == "layer" else math.gcd(8, h.shape[1]), gain, shift, eps=EPS)
    if given is None:
        return F.batch_norm(h, None, None, gain, shift, training=True, eps=EPS)
    mean, variance = given
    factor = gain * torch.rsqrt(variance + EPS)
    return h * _per_channel(factor, h) + _per_channel(shift - mean * factor, h)


def _per_channel(v_C: Tensor, h: Tensor) -> Tensor:
    return v_C.reshape(1, -1, *[1] * (h.ndim - 2))
