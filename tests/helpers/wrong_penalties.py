"""Wrong penalties: each with one mistake that is easily made."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from metarun.types import Params


class Squares:
    def of(self, weights: Params) -> Tensor:
        return torch.stack([w.square().sum() for w in weights.values()]).sum()


class Nothing:
    pass


class TwoMethods(Squares):
    def between(self, at: Any) -> Tensor:
        return self.of(at.phi)


class Rows(Squares):
    def of(self, weights: Params) -> Tensor:
        return weights["block0.weight"].square().sum(1)


class Number(Squares):
    def of(self, weights: Params) -> Any:
        return float(super().of(weights))


class Random(Squares):
    def of(self, weights: Params) -> Tensor:
        return super().of(weights) * torch.rand(())


class InPlace(Squares):
    def of(self, weights: Params) -> Tensor:
        value = super().of(weights)
        weights["block0.weight"].zero_()
        return value - value


class Detaches(Squares):
    def of(self, weights: Params) -> Tensor:
        return super().of({k: w * w.detach() for k, w in weights.items()})


class Counts(Squares):
    calls: ClassVar[list[int]] = []

    def of(self, weights: Params) -> Tensor:
        self.calls.append(1)
        return super().of(weights) * len(self.calls)
