r"""L1: Omega(w) = sum_j |w_j|, by its subgradient or by its proximal operator.

    subgradient   sign(w_j), 0 at 0: pulls towards zero and never stays there; sparsity is then a matter of a threshold
    prox          w_j <- S_tau(w_j) = sign(w_j) max(|w_j| - tau_j, 0) after each step: exact zeros

tau_j = weight * rate_j with `metric=adaptive`, rate_j the step size that the weight's own coordinate had (the
optimizer's rate; under Adam rate / (sqrt(v_hat_j) + eps)): a proximal gradient step in the optimizer's own metric,
which minimises the same objective. `metric=plain` takes the rate itself for all, a decoupled threshold in the manner
of AdamW. Under Reptile's interpolation tau = eps * weight: the weight is in units of parameter distance, not of loss.

In the inner loop the proximal step multiplies each factor of d phi / d theta by the mask 1[|x_j| >= tau_j]: coordinates
set to zero pass no meta-gradient through that step.

Vectors (biases, shifts and gains of normalisations) are exempt; `targets`, name prefixes of the
penalised tensors, replaces that rule. Sources: Tibshirani 1996; Beck, Teboulle 2009 (ISTA).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.compute.linalg import sum_scalars
from metarun.errors import require
from metarun.regularizers.selection import is_linear_map, select_tensors
from metarun.types import Params, Rates

METHODS = ("subgradient", "prox")
METRICS = ("adaptive", "plain")


@dataclass(frozen=True)
class L1:
    method: str = "prox"
    metric: str = "adaptive"
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_method(self.method, self.metric)

    def of(self, weights: Params) -> Tensor:
        return sum_scalars([w.abs().sum() for w in select_tensors(weights, self.targets, is_linear_map).values()])

    def target_names(self, weights: Params) -> list[str]:
        return list(select_tensors(weights, self.targets, is_linear_map))

    def mask_zeros(self, weights: Params) -> Params:
        return {name: weights[name] == 0 for name in self.target_names(weights)}

    def shrink(self, weights: Params, thresholds: Rates, limit: float = math.inf) -> Params:
        taus = limited_thresholds(self.target_names(weights), thresholds, limit)
        return weights | {name: soft_threshold(weights[name], tau) for name, tau in taus.items()}


def check_method(method: str, metric: str) -> None:
    require(method in METHODS, "method", method, "choices: " + ", ".join(METHODS))
    require(metric in METRICS, "metric", metric, "choices: " + ", ".join(METRICS))


def limited_thresholds(names: list[str], thresholds: Rates, limit: float) -> dict[str, Tensor | float]:
    """The thresholds of each tensor, up to the limit; one threshold for all is the same for each."""
    if isinstance(thresholds, dict):
        return {name: thresholds[name].clamp_max(limit) for name in names}
    return dict.fromkeys(names, thresholds)


def soft_threshold(w: Tensor, tau: Tensor | float) -> Tensor:
    """sign(w) max(|w| - tau, 0); a threshold of 0 changes no bit, nor those of the derivatives."""
    return torch.where(w.abs() < tau, 0.0, w - tau * w.sign())
