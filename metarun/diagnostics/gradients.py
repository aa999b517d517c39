r"""What the per-task meta-gradients g_1 .. g_T of one step say.

gbar = (1/T) sum_i g_i
variance  tr Cov = (1/(T-1)) sum_i |g_i - gbar|^2
snr       (|gbar|^2 - tr Cov / T) / tr Cov       the debiased signal over the noise of one task; its inverse is the
                                                 simple noise scale (McCandlish et al. 2018, arXiv 1812.06162)
cosine    mean over pairs i < j of cos(g_i, g_j)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metarun.linalg import dot
from metarun.types import Params


class GradientMoments(NamedTuple):
    """All that the measures need: cheap enough for every step, and free of the T x P matrix of gradients."""

    squared_norms: Tensor  # |g_i|^2, [T]
    mean_squared_norm: Tensor  # |gbar|^2
    unit_mean_squared_norm: Tensor  # |(1/T) sum_i g_i / |g_i||^2, a zero gradient pointing nowhere


def gradient_moments(grads: Params, mean: Params) -> GradientMoments:
    """From per-task gradients [T, ...] and their mean over tasks."""
    rows = [g.reshape(len(g), -1) for g in grads.values()]
    squared_norms_T = torch.stack([g.square().sum(1) for g in rows]).sum(0)
    tiny = torch.finfo(squared_norms_T.dtype).tiny
    weights_T = squared_norms_T.clamp_min(tiny).rsqrt() / len(squared_norms_T)
    unit_mean = torch.stack([(weights_T @ g).square().sum() for g in rows]).sum()
    return GradientMoments(squared_norms_T, dot(mean, mean), unit_mean)


def gradient_measures(moments: GradientMoments) -> dict[str, float]:
    """The measures by name; with a single task only its norm."""
    tasks = len(moments.squared_norms)
    norm2 = float(moments.mean_squared_norm)
    measures = {"grad_norm": norm2**0.5}
    if tasks > 1:
        # In double precision: the difference of two nearly equal sums.
        variance = (float(moments.squared_norms.double().sum()) - tasks * norm2) / (tasks - 1)
        variance = max(variance, 0.0)
        measures["grad_variance"] = variance
        measures["grad_snr"] = (norm2 - variance / tasks) / variance if variance > 0 else float("inf")
        # |sum_i u_i|^2 = (number of unit vectors) + sum over ordered pairs of their cosines.
        units = int((moments.squared_norms > 0).sum())
        pairs = tasks * (tasks - 1)
        measures["grad_cosine"] = (tasks**2 * float(moments.unit_mean_squared_norm) - units) / pairs
    return measures
