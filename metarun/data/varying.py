"""A data set whose training steps draw the shots of their tasks, so that one learner serves several sizes.

    K_t uniform over [fewest, most],  a function of (seed, t);  all tasks of an outer step t share it

The size has random words of its own: an episode of K shots is the one that it would be with K fixed. Validation and
test have the size that they are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from metarun.compute.random import step_bits, uniform
from metarun.errors import require
from metarun.types import Dataset, EpisodeSpec, Kind, Split, Task


@dataclass(frozen=True)
class VaryingShots:
    largest: Dataset  # the data set itself, all of whose episodes have the size that they are asked for
    fewest: int
    most: int

    population: ClassVar[None] = None  # it has one for each number of shots

    def __post_init__(self) -> None:
        shots = [self.fewest, self.most]
        require(1 <= self.fewest < self.most, "data.shots", shots, "must be a number, or [fewest, most], at least 1")

    @property
    def kind(self) -> Kind:
        return self.largest.kind

    def input_shape(self) -> tuple[int, ...]:
        return self.largest.input_shape()

    def outputs(self, ways: int) -> int:
        return self.largest.outputs(ways)

    def reference_inputs(self, count: int) -> Tensor:
        return self.largest.reference_inputs(count)

    def __getattr__(self, name: str) -> Any:
        """The optional members of the data set (`DatasetOptions`)."""
        if name.startswith("__"):  # a copy is asked for these before it has its fields
            raise AttributeError(name)
        return getattr(self.largest, name)

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        self.largest.check(split, spec)

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        if split == "train":
            drawn = uniform(step_bits(seed, step, 1), self.fewest, self.most + 1)
            spec = spec._replace(shots=int(drawn[0]))
        return self.largest.episodes(split, seed, step, tasks, spec)

    def facts(self) -> dict[str, Any]:
        return self.largest.facts()
