"""Networks side by side as one model: the weights of part NAME are named NAME.block0.weight and so on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metarun.compute import random
from metarun.types import ModelOptions, Params, optional

STARTS = 12
"""The first word of step 0 that initial weights are drawn from; a learner uses those below for other purposes."""


@dataclass(frozen=True)
class MultiNetwork:
    """The parts in order; the last one predicts."""

    parts: tuple[tuple[str, Any], ...]

    @property
    def features(self) -> int:
        return self.parts[-1][1].features

    @property
    def matmul_only(self) -> bool:
        return all(optional(part, ModelOptions, "matmul_only") for _, part in self.parts)

    def init(self, seed: int) -> Params:
        """The weights of all parts, each drawn with its own seed below 2^32 (torch's generator ignores higher bits):
        parts of equal shape with equal initial weights might stay equal."""
        seeds = random.learner_bits(seed, 0, range(len(self.parts)), STARTS, 1)[:, 0] >> 32
        parts = zip(self.parts, seeds.tolist(), strict=True)
        return {f"{name}.{k}": v for (name, part), start in parts for k, v in part.init(start).items()}

    def run(self, name: str, params: Params, *inputs: Any) -> Tensor:
        """Apply the part `name` to its inputs."""
        return dict(self.parts)[name].apply(part_params(params, name), *inputs)

    def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
        """Apply the last part to its rows."""
        name, part = self.parts[-1]
        return part.apply(part_params(params, name), x, stats)

    def activations(self, params: Params, x: Tensor, stats: Any = None) -> dict[str, Tensor]:
        name, part = self.parts[-1]
        return part.activations(part_params(params, name), x, stats)

    def query_stats(self, params: Params, support_x: Tensor) -> Any:
        """None: the parts normalise each row by itself."""

    def calibrate(self, params: Params, x: Tensor) -> MultiNetwork:
        return self


def part_params(params: Params, name: str) -> Params:
    """The weights of a part, under the part's own names."""
    return {k.removeprefix(f"{name}."): v for k, v in params.items() if k.startswith(f"{name}.")}


def multi_network(**parts: Any) -> MultiNetwork:
    """A model of these parts, in the order of the arguments."""
    return MultiNetwork(tuple(parts.items()))
