"""Networks side by side as one model: the weights of part NAME are named NAME.block0.weight and so on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metarun.types import Params

BETWEEN_SEEDS = 2**32
"""Part i is initialised with seed + i times this, so that no part of one seed has the weights of another seed's."""


@dataclass(frozen=True)
class Several:
    """The parts in their order; the last one is what predicts."""

    parts: tuple[tuple[str, Any], ...]

    @property
    def features(self) -> int:
        return self.parts[-1][1].features

    @property
    def by_products(self) -> bool:
        return all(getattr(part, "by_products", False) for _, part in self.parts)

    def init(self, seed: int) -> Params:
        found: Params = {}
        for i, (name, part) in enumerate(self.parts):
            found |= {f"{name}.{k}": v for k, v in part.init(seed + i * BETWEEN_SEEDS).items()}
        return found

    def run(self, name: str, params: Params, *inputs: Any) -> Tensor:
        """One part on its inputs."""
        return dict(self.parts)[name].apply(own(params, name), *inputs)

    def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
        """The last part, on rows that it takes."""
        name, part = self.parts[-1]
        return part.apply(own(params, name), x, stats)

    def activations(self, params: Params, x: Tensor, stats: Any = None) -> dict[str, Tensor]:
        name, part = self.parts[-1]
        return part.activations(own(params, name), x, stats)

    def query_stats(self, params: Params, support_x: Tensor) -> Any:
        """None: the parts normalise each row by itself."""

    def calibrated(self, params: Params, x: Tensor) -> Several:
        return self


def own(params: Params, name: str) -> Params:
    """The weights of a part, under the names that it knows."""
    return {k.removeprefix(f"{name}."): v for k, v in params.items() if k.startswith(f"{name}.")}


def several(**parts: Any) -> Several:
    """In the order of the arguments."""
    named: Mapping[str, Any] = parts
    return Several(tuple(named.items()))
