"""L2: (w/2) sum_j theta_j^2 added to the outer objective; its gradient is w theta.

Unlike `optim.weight_decay` with an adaptive optimizer, the penalty passes through the optimizer as part of the
meta-gradient. Symbols: w `weight`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from metarun.errors import require
from metarun.linalg import dot
from metarun.types import Params


@dataclass(frozen=True)
class L2:
    weight: float

    def __post_init__(self) -> None:
        require(self.weight >= 0, "weight", self.weight, "must be at least 0")

    def outer(self, params: Params) -> Tensor:
        return self.weight / 2 * dot(params, params)
