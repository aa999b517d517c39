r"""What the per-task meta-gradients g_1 .. g_T of one step say.

gbar = (1/T) sum_i g_i
variance   tr Cov = (1/(T-1)) sum_i |g_i - gbar|^2
debiased   sqrt(max(0, |gbar|^2 - tr Cov / T)): E|gbar|^2 = |grad F|^2 + tr Cov / T, so |gbar| alone never falls
           below the noise of the tasks that were drawn
snr        (|gbar|^2 - tr Cov / T) / tr Cov        the debiased signal over the noise of one task; its inverse is the
                                                   simple noise scale (McCandlish et al. 2018, arXiv 1812.06162)
cosine     mean over pairs i < j of cos(g_i, g_j), a zero gradient pointing nowhere
conflict   share of the pairs with cos(g_i, g_j) < 0 (Yu et al. 2020, arXiv 2001.06782)
"""

from __future__ import annotations

import torch
from torch import Tensor

from metarun.compute.linalg import layer_norms, norm
from metarun.types import Params


def gradient_measures(grads: Params) -> dict[str, float]:
    """The measures by name, from per-task gradients [T, ...]; with a single task only norms."""
    mean = {k: g.mean(0) for k, g in grads.items()}
    length = float(norm(mean))
    measures = {"grad_norm": length} | {f"grad_norm/{k}": v for k, v in layer_norms(mean).items()}
    tasks = len(next(iter(grads.values())))
    if tasks > 1:
        variance = float(sum(((g - mean[k]).square().sum() for k, g in grads.items()), torch.zeros(()))) / (tasks - 1)
        signal = length**2 - variance / tasks
        measures["grad_norm_debiased"] = max(signal, 0.0) ** 0.5
        measures["grad_variance"] = variance
        measures["grad_snr"] = signal / variance if variance > 0 else float("inf")
        pairs = pairwise_cosines(grads)
        measures["grad_cosine"] = float(pairs.double().mean())
        measures["grad_conflict"] = float((pairs < 0).double().mean())
    return measures


def pairwise_cosines(grads: Params) -> Tensor:
    """cos(g_i, g_j) of the T (T-1) / 2 pairs i < j; 0 where one of them is zero."""
    rows = [g.reshape(len(g), -1) for g in grads.values()]
    lengths_T = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g, dim=1) for g in rows]), dim=0)
    units = [g / lengths_T.clamp_min(torch.finfo(g.dtype).tiny)[:, None] for g in rows]
    cosines_TT = torch.stack([u @ u.T for u in units]).sum(0)
    tasks = len(cosines_TT)
    first, second = torch.triu_indices(tasks, tasks, offset=1)
    return cosines_TT[first, second].clamp(-1, 1)
