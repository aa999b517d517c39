"""Normalisation without running statistics, which per-task weights under `vmap` could not own.

batch       the statistics of the batch at hand, at test too: queries of a task see each other (transductive)
joined      each query in a batch of the support set and itself, without the other queries (not transductive)
support     queries are normalised with the support set's statistics (not transductive)
population  the batch's while training; at evaluation fixed ones, measured layer by layer on a sample of training images
group       8 groups of channels (or as many as divide them), per example
layer       all channels together, per example
none        only a learned shift
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.errors import require

NORMS = ("batch", "joined", "support", "population", "group", "layer", "none")
BATCH_NORMS = ("batch", "joined", "support", "population")
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


def pool_moments(parts: Sequence[Moments], rows: Sequence[int]) -> Moments:
    """The moments of all rows, from those of parts with so many rows each: with the weights w of the parts,
    m = sum w m_i and sum w (v_i + (m_i - m)^2)."""
    shares = [count / sum(rows) for count in rows]
    mean = torch.stack([w * m for w, (m, _) in zip(shares, parts, strict=True)]).sum(0)
    spread = [w * (v + (m - mean).square()) for w, (m, v) in zip(shares, parts, strict=True)]
    return mean, torch.stack(spread).sum(0)


def product_moments(x: Tensor, weight: Tensor) -> Moments:
    """The moments of W x over all rows of x [B, K, ...], W [C, ...] of K numbers a row, without the product itself:
    W m and diag(W S W^T) with the mean m and the covariance S of the rows."""
    rows, w = _rows(x), weight.flatten(1)
    mean = rows.mean(0)
    centred = rows - mean
    covariance = centred.T @ centred / rows.shape[0]
    return w @ mean, ((w @ covariance) * w).sum(1).clamp_min(0)  # rounding can make a variance of 0 negative


def normalise(
    h: Tensor, gain: Tensor | None, shift: Tensor, norm: str, given: Moments | None = None, eps: float = EPS
) -> Tensor:
    """h [B, C, ...] -> the same shape; `given` replaces the moments of the batch at hand. Only `none` has no gain."""
    if norm == "none" or gain is None:
        return h + per_channel(shift, h)
    if norm not in BATCH_NORMS:
        groups = 1 if norm == "layer" else math.gcd(8, h.shape[1])
        flat = h.reshape(*h.shape[:2], -1)  # vmap has no group norm for images that are channels last
        return F.group_norm(flat, groups, gain, shift, eps=eps).view(h.shape)
    if given is None and h.is_contiguous():
        return F.batch_norm(h, None, None, gain, shift, training=True, eps=eps)
    if given is None:
        # On rows, the memory order that a task's matrix products write and the next ones read.
        rows = F.batch_norm(_rows(h), None, None, gain, shift, training=True, eps=eps)
        return rows.view(h.shape[0], *h.shape[2:], -1).movedim(-1, 1)
    factor, shift = as_linear_map(gain, shift, given, eps)
    return h * per_channel(factor, h) + per_channel(shift, h)


def as_linear_map(gain: Tensor, shift: Tensor, given: Moments, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """Factor and shift [C] of a normalisation with given moments."""
    mean, variance = given
    factor = gain * torch.rsqrt(variance + eps)
    return factor, shift - mean * factor


def per_channel(v_C: Tensor, h: Tensor) -> Tensor:
    return v_C.reshape(1, -1, *[1] * (h.ndim - 2))


def _rows(h: Tensor) -> Tensor:
    """[B, C, ...] -> [B * pixels, C]."""
    return h.movedim(1, -1).flatten(0, -2)
