"""Networks side by side as one model: the weights of part NAME are named NAME.block0.weight and so on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metarun.compute import random
from metarun.types import ModelOptions, Params, optional

STARTS = 12
"""Which of the words of step 0 the initial weights are drawn from; a learner has other uses for those below."""


@dataclass(frozen=True)
class MultiNetwork:
    """The parts in their order; the last one is what predicts."""

    parts: tuple[tuple[str, Any], ...]

    @property
    def features(self) -> int:
        return self.parts[-1][1].features

    @property
    def matmul_only(self) -> bool:
        return all(optional(part, ModelOptions, "matmul_only") for _, part in self.parts)

    def init(self, seed: int) -> Params:
        """Each part with a seed of its own below 2^32, all that torch's generator looks at: parts of equal shape that
        began alike might stay alike."""
        seeds = random.learner_bits(seed, 0, range(len(self.parts)), STARTS, 1)[:, 0] >> 32
        parts = zip(self.parts, seeds.tolist(), strict=True)
        return {f"{name}.{k}": v for (name, part), start in parts for k, v in part.init(start).items()}

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

    def calibrate(self, params: Params, x: Tensor) -> MultiNetwork:
        return self


def own(params: Params, name: str) -> Params:
    """The weights of a part, under the names that it knows."""
    return {k.removeprefix(f"{name}."): v for k, v in params.items() if k.startswith(f"{name}.")}


def multi_network(**parts: Any) -> MultiNetwork:
    """In the order of the arguments."""
    named: Mapping[str, Any] = parts
    return MultiNetwork(tuple(named.items()))
