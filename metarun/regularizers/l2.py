"""L2: Omega(w) = (1/2) sum_j w_j^2, whose gradient is w.

Unlike `optim.weight_decay` with an adaptive optimizer, the penalty passes through the optimizer as part of the
meta-gradient. `targets` are name prefixes of the penalised tensors; null: all.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from metarun.compute.linalg import sum_scalars
from metarun.regularizers.selection import select_tensors
from metarun.types import Params


@dataclass(frozen=True)
class L2:
    targets: tuple[str, ...] | None = None

    def of(self, weights: Params) -> Tensor:
        return sum_scalars([w.square().sum() for w in select_tensors(weights, self.targets).values()]) / 2
