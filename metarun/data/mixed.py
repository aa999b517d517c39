r"""A mixture of image sets: each training task is drawn from one of several sets, as in Meta-Dataset.

    m_i ~ w,  task i of a step is the k-th task of set m_i at this step,   k = the number of tasks j < i with m_j = m_i

Symbols: w the probabilities of the sets, equal or in the ratio of `weights`; m_i a function of (seed, step, i) in a
stream of random words of its own. So a task depends on its index alone, whichever others are drawn beside it, and each
set is asked for consecutive tasks. In validation and test m_i = i mod M, whatever the weights: all M sets have as many
tasks, but for one, and they are the first tasks of the set's own validation or test. Of test tasks that share no class
(`disjoint`) a set has as many as its classes allow; when these are used up, the other sets take turns without it.

All images have one size, one number of channels and one normalisation; all tasks the same ways, shots and queries. What
else a set has is its own: split, filter, rotations, augmentation. Triantafillou et al. 2020, Meta-Dataset, arXiv
1903.03096, whose tasks also differ in ways and shots.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metarun.compute.random import SPLITS, set_bits, uniform
from metarun.config.components import construct, locate
from metarun.config.data_sets import FORM, INPUTS
from metarun.data.images import Index, members_sha256
from metarun.data.pixels import Pixels
from metarun.errors import SettingError, UserError, nearest, require
from metarun.types import Batch, Dataset, DatasetOptions, EpisodeSpec, Kind, Split, Task, optional

SET_STEP = 2**43
"""Training tasks of set m are drawn at the step plus m times this, so that two sets share no random numbers."""


def mixed(
    sets: dict[str, Any] | None,
    weights: dict[str, float] | None,
    image_size: int,
    channels: int,
    normalize: str,
    trusted_modules: Sequence[str] = (),
) -> MixedData:
    """The data set of these settings, which conf/data/mixed.yaml explains."""
    require(bool(sets), "sets", sets, FORM)
    pixels, opened = Pixels(image_size, channels, "lanczos", normalize=normalize), {}
    for name, settings in (sets or {}).items():
        require(isinstance(settings, Mapping), f"sets.{name}", settings, FORM)
        shared = zip(INPUTS, (image_size, channels, normalize), strict=True)
        node = {**settings, **{key: value for key, value in shared if key in settings}}
        option = node.pop("data", name)
        made: Dataset = construct(f"data.sets.{name}", locate("data", node, trusted_modules), node)
        is_image = optional(made, DatasetOptions, "pixels") is not None and made.input_shape() == pixels.shape
        require(is_image, f"sets.{name}", option, "has no images that can be mixed; choices: sets of images")
        opened[name] = made
    return MixedData(opened, _share(weights, [*opened]), pixels)


def _share(weights: Mapping[str, float] | None, names: Sequence[str]) -> tuple[float, ...]:
    """The probability of each set."""
    if weights is None:
        return (1 / len(names),) * len(names)
    for name in weights:
        require(name in names, "weights", name, f"no such set, {nearest(name, names)}")
    values = [weights.get(name) for name in names]
    valid = all(value is not None and 0 < value < float("inf") for value in values)
    require(valid, "weights", dict(weights), f"must have a number above 0 for each of {', '.join(names)}")
    numbers = [float(value or 0) for value in values]
    return tuple(number / sum(numbers) for number in numbers)


@dataclass(frozen=True)
class MixedData:
    """Classification of images of several sets."""

    sets: Mapping[str, Any]  # name -> its data set
    shares: tuple[float, ...]  # the probability of each in training
    pixels: Pixels
    original: MixedData | None = None  # the images, where the sets have their features in place of pixels
    test_tasks: tuple[int, ...] | None = None  # of each set, where no two of them share a class
    first_labels: tuple[int, ...] | None = None  # of each set, where training labels are numbers of classes

    kind: ClassVar[Kind] = "classification"
    row: ClassVar[str] = "picture"

    def input_shape(self) -> tuple[int, ...]:
        return next(iter(self.sets.values())).input_shape()

    def outputs(self, ways: int) -> int:
        return ways

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        for name, data in self.sets.items():
            try:
                with naming_set(name):
                    data.check(split, spec)
            except SettingError as error:
                if error.key in ("ways", "shots", "queries"):
                    raise SettingError(error.key, error.value, f"{error.expected} (set {name})") from error
                raise SettingError(f"sets.{name}.{error.key}", error.value, error.expected) from error

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        drawn, order = self._gather("episodes", split, seed, step, tasks, spec)
        batches = zip(*drawn, strict=True)
        task = Task(*(Batch(*(torch.cat(part)[order] for part in zip(*of_sets, strict=True))) for of_sets in batches))
        if split != "train" or self.first_labels is None:
            return task
        chosen = self._choose(split, seed, step, tasks.stop)[tasks.start :]
        first_T = torch.tensor(self.first_labels)[torch.from_numpy(chosen)]
        return Task(*(Batch(batch.x, batch.y + first_T[:, None]) for batch in task))

    def task_sets(self, split: Split, seed: int, step: int, tasks: range) -> list[str]:
        """The set of each task."""
        names = [*self.sets]
        return [names[m] for m in self._choose(split, seed, step, tasks.stop)[tasks.start :]]

    def class_names(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> list[tuple[str, ...]]:
        """The classes of each task, as SET/CLASS."""
        found = self._in_order("class_names", split, seed, step, tasks, spec)
        sets = self.task_sets(split, seed, step, tasks)
        return [tuple(f"{name}/{label}" for label in labels) for name, labels in zip(sets, found, strict=True)]

    def query_names(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> list[list[str]]:
        """The files of each task's queries."""
        return self._in_order("query_names", split, seed, step, tasks, spec)

    def reference_inputs(self, count: int) -> Tensor:
        """As many training images of each set; one more of the first sets where the count does not divide."""
        total = len(self.sets)
        counts = [count // total + (m < count % total) for m in range(total)]
        return torch.cat([data.reference_inputs(n) for data, n in zip(self.sets.values(), counts, strict=True) if n])

    def embed(self, read: Callable[..., Any]) -> MixedData:
        """The same episodes of features; or these data themselves, where a set has images that change."""
        embedded = {name: data.embed(read) for name, data in self.sets.items()}
        changing = any(embedded[name] is data for name, data in self.sets.items())
        return self if changing else replace(self, sets=embedded, original=self)

    def disjoint(self, ways: int) -> tuple[MixedData, int]:
        """The same sets with test tasks that share no class of their set, and how many of so many ways there are."""
        found, counts = {}, []
        for name, data in self.sets.items():
            try:
                found[name], count = data.disjoint(ways)
            except SettingError as error:
                raise error.under(f"sets.{name}") from error
            if count < 2:
                left = f"leaves {count} test tasks of {ways} ways of set {name}"
                raise UserError(f"test.classes=disjoint: {left}; choices: drawn")
            counts.append(count)
        original = self.original and self.original.disjoint(ways)[0]
        return replace(self, sets=found, original=original, test_tasks=tuple(counts)), sum(counts)

    def numbered(self) -> tuple[MixedData, int]:
        """The same sets with the numbers of the classes as labels of training episodes, and how many there are: those
        of a set follow those of the sets before it."""
        found = {name: data.numbered() for name, data in self.sets.items()}
        counts = [count for _, count in found.values()]
        first = tuple(sum(counts[:m]) for m in range(len(counts)))
        sets = {name: data for name, (data, _) in found.items()}
        return replace(self, sets=sets, first_labels=first), sum(counts)

    @property
    def members(self) -> dict[str, list[str]]:
        """The class names of each split, as SET/CLASS."""
        parts = {name: data.members for name, data in self.sets.items()}
        return {split: [f"{name}/{c}" for name, part in parts.items() for c in part[split]] for split in SPLITS}

    def facts(self) -> dict[str, Any]:
        found = {name: data.facts() for name, data in self.sets.items()}
        caveats = [f"{name}: {facts['caveat']}" for name, facts in found.items() if facts.get("caveat")]
        return {
            "split": ", ".join(f"{name} {facts['split']}" for name, facts in found.items()),
            "split_sha256": members_sha256(self.members),
            "classes": {split: sum(facts["classes"][split] for facts in found.values()) for split in SPLITS},
            "images_are": str(self.pixels),
            "image_size": self.pixels.size,
            "channels": self.pixels.channels,
            "normalize": self.pixels.normalize,
            "sets": found,
            "shares": dict(zip(self.sets, self.shares, strict=True)),
            **({"caveat": "; ".join(caveats)} if caveats else {}),
        }

    def describe(self) -> dict[str, Any]:
        """The facts, and those of each set after verifying its cache."""
        found = {}
        for name, data in self.sets.items():
            with naming_set(name):
                found[name] = data.describe()
        return self.facts() | {"sets": found}

    def contact_sheet(self, spec: EpisodeSpec) -> Image.Image:
        """Those of the sets below each other."""
        sheets = [data.contact_sheet(spec) for data in self.sets.values()]
        sheet = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), "white")
        for m, part in enumerate(sheets):
            sheet.paste(part, (0, sum(s.height for s in sheets[:m])))
        return sheet

    def _choose(self, split: Split, seed: int, step: int, count: int) -> Index:
        """The set of each of the first `count` tasks [count]."""
        if split == "test" and self.test_tasks is not None:
            left = [[m for m, most in enumerate(self.test_tasks) if k < most] for k in range(max(self.test_tasks))]
            return np.concatenate(left)[:count]
        if split != "train":
            return np.arange(count) % len(self.sets)
        draws = uniform(set_bits(seed, step, range(count), 1)[:, 0], 0, 1)
        return np.searchsorted(np.cumsum(self.shares)[:-1], draws, side="right")

    def _gather(
        self, member: str, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec
    ) -> tuple[list[Any], Tensor]:
        """What a member of each set gives for its tasks, and the places of the given tasks in the list of these."""
        chosen, found, places = self._choose(split, seed, step, tasks.stop), [], []
        for m, data in enumerate(self.sets.values()):
            own = np.flatnonzero(chosen == m)
            first = int(np.searchsorted(own, tasks.start))
            if first < len(own):
                at = step + m * SET_STEP if split == "train" else step
                found.append(getattr(data, member)(split, seed, at, range(first, len(own)), spec))
                places.append(own[first:])
        return found, torch.from_numpy(np.argsort(np.concatenate(places)))

    def _in_order(self, member: str, *which: Any) -> list[Any]:
        found, order = self._gather(member, *which)
        flat = [entry for part in found for entry in part]
        return [flat[i] for i in order.tolist()]


@contextlib.contextmanager
def naming_set(name: str) -> Iterator[None]:
    """Raise an error of a set's files in the block with the name of the set."""
    try:
        yield
    except SettingError:
        raise
    except UserError as error:
        raise UserError(f"data.sets.{name}: {error}") from error
