r"""Elastic net: Omega(w) = sum_j |w_j| + (ratio/2) sum_j w_j^2, by its subgradient or by its proximal operator.

    subgradient   sign(w_j) + ratio w_j, sign(0) = 0
    prox          w_j <- S_tau(w_j) / (1 + tau_j ratio),   S_tau the soft threshold (l1.py)

The square keeps weights that say the same together, where L1 alone picks one of them, and gives the penalty the
curvature `ratio` at every weight that is not 0. Thresholds, metrics and which tensors are exempt: as for L1.
Source: Zou, Hastie 2005 (the "naive" elastic net, without their rescaling of the solution).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from metarun.compute.linalg import sum_scalars
from metarun.errors import require
from metarun.regularizers.l1 import check_method, limited_thresholds, soft_threshold
from metarun.regularizers.selection import is_linear_map, select_tensors
from metarun.types import Params, Rates


@dataclass(frozen=True)
class Elastic:
    """|w|_1 + (ratio/2) |w|^2."""

    ratio: float = 1.0
    method: str = "prox"
    metric: str = "adaptive"
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        require(0 <= self.ratio < float("inf"), "ratio", self.ratio, "must be at least 0 and finite")
        check_method(self.method, self.metric)

    def of(self, weights: Params) -> Tensor:
        tensors = select_tensors(weights, self.targets, is_linear_map).values()
        return sum_scalars([w.abs().sum() + self.ratio / 2 * w.square().sum() for w in tensors])

    def target_names(self, weights: Params) -> list[str]:
        return list(select_tensors(weights, self.targets, is_linear_map))

    def mask_zeros(self, weights: Params) -> Params:
        return {name: weights[name] == 0 for name in self.target_names(weights)}

    def shrink(self, weights: Params, thresholds: Rates, limit: float = math.inf) -> Params:
        taus = limited_thresholds(self.target_names(weights), thresholds, limit)
        return weights | {k: soft_threshold(weights[k], tau) / (1 + tau * self.ratio) for k, tau in taus.items()}
