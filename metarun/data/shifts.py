r"""Test tasks unlike those of training: data sets around a data set, with other test episodes.

Episodes are a pure function of the same arguments as in the original data set. Population statistics stay those of its
training images: a network does not know that it is tested under a shift.

`ImageChange` changes images in ways that a network was not trained on:

    rotated    about the middle, counter-clockwise by `rotate` degrees, bilinear (which softens fine strokes, but not at
               multiples of 90). Drawings in ink are continued by paper (0), photographs are mirrored at their edges
    blurred    by a Gaussian whose standard deviation is `blur` pixels
    contrast   v -> m + c (v - m), c = `contrast`, m the mean grey of the image
    noisy      v -> v + e, e ~ N(0, noise^2) for each value

in this order, then clamped to [0, 1]. The noise is a function of (seed, step, task, support or query).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from metarun.compute.random import augmentation_bits, random_bits, uniform
from metarun.data.augment import luma
from metarun.data.images import ImageData, Index
from metarun.data.pixels import Pixels
from metarun.data.torchvision import load_torchvision
from metarun.errors import SettingError, require
from metarun.types import Batch, Dataset, EpisodeSpec, Kind, Split, Task

GROUP_STEP = 2**42
"""Groups are chosen at the step plus this, and group g draws at the step plus (g + 2) times this: no training reaches
these steps, and no two groups share random numbers."""


class Episodes(Protocol):
    """The part of a data set that a shift replaces."""

    def check(self, split: Split, spec: EpisodeSpec) -> None: ...

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task: ...

    def facts(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class ShiftedDataset:
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

    def reference_inputs(self, count: int) -> Tensor:
        return self.dataset.reference_inputs(count)

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        self._of(split).check(split, spec)

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        return self._of(split).episodes(split, seed, step, tasks, spec)

    def facts(self) -> dict[str, Any]:
        return self.dataset.facts() | {"tested_on": self.tested.facts()}

    def _of(self, split: Split) -> Episodes:
        return self.tested if split == "test" else self.dataset


@dataclass(frozen=True)
class ChangedImages:
    """The same episodes with every image changed, of support and query alike."""

    original: Episodes
    pixels: Pixels  # of its images
    change: ImageChange

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        self.original.check(split, spec)

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        drawn = self.original.episodes(split, seed, step, tasks, spec)
        plain = (self.pixels.to_bytes(batch.x) / 255 for batch in drawn)
        changed = (self.change(x, self.pixels.ink, seed, step, tasks, part) for part, x in enumerate(plain))
        return Task(*(Batch(self.pixels.standardize(x), b.y) for x, b in zip(changed, drawn, strict=True)))

    def facts(self) -> dict[str, Any]:
        return self.original.facts() | {"images_changed": dataclasses.asdict(self.change)}


@dataclass(frozen=True)
class WithinGroups:
    """Episodes whose classes are all of one group, as the characters of one alphabet.

    A task's group is chosen uniformly among those with at least `ways` classes in the test split.
    """

    data: ImageData

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        large = self._large(spec)
        if not large:
            raise SettingError("ways", spec.ways, "no group of test classes has so many")
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
        return [data for classes, data in self._groups if classes >= spec.ways]

    @functools.cached_property
    def _groups(self) -> list[tuple[int, ImageData]]:
        """The number of classes of each group, and the images tested on them."""
        groups = group_classes(self.data, self.data.source.splits["test"])
        return [(len(ids), with_test_classes(self.data, ids)) for ids in groups.values()]


def with_test_classes(data: ImageData, classes: Sequence[int] | Index) -> ImageData:
    """The same images, tested on these classes (indices in the table) instead of the split's."""
    source = data.source
    splits = source.splits | {"test": np.asarray(classes, dtype=np.intp)}
    return dataclasses.replace(data, load=lambda verify: source._replace(splits=splits))


def group_classes(data: ImageData, classes: Index) -> dict[str, Index]:
    """The indices of the classes of each group: GROUP/CLASS belongs to GROUP; a class without a slash, to none."""
    found: dict[str, list[int]] = {}
    for i in classes.tolist():
        group = data.source.table.names[i].rpartition("/")[0]
        if group:
            found.setdefault(group, []).append(i)
    return {group: np.array(ids, dtype=np.intp) for group, ids in sorted(found.items())}


@dataclass(frozen=True)
class ImageChange:
    """A function of images [T, rows, C, H, W] in [0, 1]; the defaults change nothing."""

    rotate: float = 0.0  # degrees
    blur: float = 0.0  # pixels
    contrast: float = 1.0
    noise: float = 0.0  # of values between 0 and 1

    def __post_init__(self) -> None:
        require(math.isfinite(self.rotate), "rotate", self.rotate, "must be finite (degrees)")
        for name in ("blur", "contrast", "noise"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "must be at least 0 and finite")

    def __call__(self, images: Tensor, ink: bool, seed: int, step: int, tasks: range, part: int) -> Tensor:
        """`part` is 0 for support, 1 for query; `ink` says whether the background is 0."""
        flat = images.flatten(0, 1)
        if self.rotate:
            flat = rotate_images(flat, self.rotate, "zeros" if ink else "reflection")
        if self.blur:
            flat = blur_images(flat, self.blur)
        if self.contrast != 1:
            flat = torch.lerp(luma(flat).mean((1, 2, 3), keepdim=True), flat, self.contrast)
        changed = flat.view_as(images)
        if self.noise:
            seeds = augmentation_bits(seed, step, tasks, part, 1)[:, 0] >> 1  # of each task, below 2^63
            draws = [torch.Generator().manual_seed(int(s)) for s in seeds]
            normals = torch.stack([torch.randn(changed.shape[1:], generator=draw) for draw in draws])
            changed = changed + self.noise * normals.to(changed)
        return changed.clamp(0, 1)


def rotate_images(images: Tensor, degrees: float, outside: str) -> Tensor:
    """Rotate [B, C, H, W] counter-clockwise; `outside` is a padding mode of grid_sample."""
    angle = math.radians(degrees)
    inverse = [[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]]
    theta = images.new_tensor(inverse).expand(len(images), 2, 3)
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode=outside, align_corners=False)


def blur_images(images: Tensor, deviation: float) -> Tensor:
    """Blur [B, C, H, W] with a Gaussian kernel, cut off at three deviations or at the size of the image."""
    load_torchvision()
    from torchvision.transforms.functional import gaussian_blur

    reach = min(math.ceil(3 * deviation), *(side - 1 for side in images.shape[-2:]))
    return gaussian_blur(images, [2 * reach + 1] * 2, [deviation] * 2)
