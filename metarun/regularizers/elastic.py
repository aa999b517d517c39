r"""Elastic net: Omega(w) = sum_j |w_j| + (ratio/2) sum_j w_j^2, by its subgradient or by its proximal operator.

    subgradient   sign(w_j) + ratio w_j, sign(0) = 0
    prox          w_j <- S_tau(w_j) / (1 + tau_j ratio),   S_tau the soft threshold (l1.py)

The square keeps weights that say the same together, where L1 alone picks one of them, and gives the penalty the
curvature `ratio` at every weight that is not 0. Thresholds, metrics and which tensors are exempt: as for L1.
Source: Zou, Hastie 2005 (the "naive" elastic net, without their rescaling of the solution).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from metarun.errors import require
from metarun.regularizers.l1 import L1, soft_threshold


@dataclass(frozen=True)
class Elastic(L1):
    """|w|_1 + (ratio/2) |w|^2."""

    ratio: float = 1.0

    def __post_init__(self) -> None:
        require(0 <= self.ratio < float("inf"), "ratio", self.ratio, "must be at least 0 and finite")
        super().__post_init__()

    def _of_tensor(self, w: Tensor) -> Tensor:
        return w.abs().sum() + self.ratio / 2 * w.square().sum()

    def _shrink_tensor(self, w: Tensor, tau: Tensor | float) -> Tensor:
        return soft_threshold(w, tau) / (1 + tau * self.ratio)
