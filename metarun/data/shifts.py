"""Test tasks unlike those of training: a data set around a data set, whose test episodes come from elsewhere.

All is a pure function of the same arguments as in the data set inside. Population statistics stay those of its training
images: a network that is tested under a shift does not know of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from metarun.compute.random import random_bits, uniform
from metarun.data.changes import ImageChange
from metarun.data.image_data import ImageData
from metarun.data.images import Index
from metarun.data.pixels import Pixels
from metarun.errors import SettingError
from metarun.types import Batch, Dataset, EpisodeSpec, Kind, Split, Task

GROUP_STEP = 2**42
"""Groups are chosen at the step plus this, and group g draws at the step plus (g + 2) of it: no training comes there,
and no two groups share their random numbers."""


class Episodes(Protocol):
    """The part of a data set that a shift replaces; every data set has it."""

    def check(self, split: Split, spec: EpisodeSpec) -> None: ...

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task: ...

    def facts(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Shifted:
    """A data set with other test episodes."""

    dataset: Dataset
    tested: Episodes

    @property
    def kind(self) -> Kind:
        return self.dataset.kind

    def input_shape(self) -> tuple[int, ...]:
        return self.dataset.input_shape()

    def outputs(self, ways: int) -> int:
        return self.dataset.outputs(ways)

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        self._of(split).check(split, spec)

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        return self._of(split).episodes(split, seed, step, tasks, spec)

    def reference_inputs(self, count: int) -> Tensor:
        return self.dataset.reference_inputs(count)

    def facts(self) -> dict[str, Any]:
        return self.dataset.facts() | {"tested_on": self.tested.facts()}

    def _of(self, split: Split) -> Episodes:
        return self.tested if split == "test" else self.dataset


@dataclass(frozen=True)
class ChangedImages:
    """Every image, of support and query alike, goes through a change; the episodes are the same."""

    inside: Episodes
    pixels: Pixels  # of its images
    change: ImageChange

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        self.inside.check(split, spec)

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        drawn = self.inside.episodes(split, seed, step, tasks, spec)
        plain = (self.pixels.to_bytes(batch.x) / 255 for batch in drawn)
        changed = (self.change(x, self.pixels.ink, seed, step, tasks, part) for part, x in enumerate(plain))
        return Task(*(Batch(self.pixels.normalised(x), b.y) for x, b in zip(changed, drawn, strict=True)))

    def facts(self) -> dict[str, Any]:
        return self.inside.facts() | {"images_changed": dataclasses.asdict(self.change)}


@dataclass(frozen=True)
class WithinGroups:
    """All classes of an episode are of one group, as the characters of one alphabet.

    A task's group is chosen uniformly among those with at least `ways` classes in the test split, its classes as ever.
    """

    data: ImageData

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        large = self._large(spec)
        if not large:
            raise SettingError("ways", spec.ways, "no group of test classes has as many")
        for part in large:
            part.check("test", spec)

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        large = self._large(spec)
        bits = random_bits(split, seed, step + GROUP_STEP, tasks, 1)[:, 0]
        chosen = uniform(bits, 0, len(large)).astype(int).tolist()
        steps = [step + GROUP_STEP * (g + 2) for g in chosen]
        drawn = [
            large[g].episodes("test", seed, s, range(i, i + 1), spec)
            for i, g, s in zip(tasks, chosen, steps, strict=True)
        ]
        return Task(*(Batch(*map(torch.cat, zip(*part, strict=True))) for part in zip(*drawn, strict=True)))

    def facts(self) -> dict[str, Any]:
        return self.data.facts() | {"classes_of_an_episode": "one group"}

    def _large(self, spec: EpisodeSpec) -> list[ImageData]:
        return [self._of_group(group) for group, ids in self._groups.items() if len(ids) >= spec.ways]

    @functools.cached_property
    def _groups(self) -> dict[str, Index]:
        return by_group(self.data, self.data.source.splits["test"])

    @functools.cached_property
    def _of_group(self) -> Callable[[str], ImageData]:
        return functools.cache(lambda group: with_test_classes(self.data, self._groups[group]))


def with_test_classes(data: ImageData, classes: Sequence[int] | Index) -> ImageData:
    """The same images, tested on these classes (numbers of the table) instead of the split's."""
    source = data.source
    splits = source.splits | {"test": np.asarray(classes, dtype=np.intp)}
    return dataclasses.replace(data, load=lambda verify: source._replace(splits=splits))


def by_group(data: ImageData, classes: Index) -> dict[str, Index]:
    """Classes by what stands before the last stroke of their names: ALPHABET of ALPHABET/CHARACTER; a class whose name
    has none is in no group."""
    found: dict[str, list[int]] = {}
    for i in classes.tolist():
        group = data.source.table.names[i].rpartition("/")[0]
        if group:
            found.setdefault(group, []).append(i)
    return {group: np.array(ids, dtype=np.intp) for group, ids in sorted(found.items())}
