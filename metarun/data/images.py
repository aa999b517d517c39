"""Image data sets: one uint8 tensor sorted by class, and episodes gathered from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.data.draws import Bits, choose, random_bits, uniform
from metarun.errors import require
from metarun.types import Batch, EpisodeSpec, Split, Task

Index = NDArray[np.intp]


class ImageTable(NamedTuple):
    """All images of a data set; class c owns rows starts[c] .. starts[c] + counts[c] - 1."""

    images: Tensor  # uint8 [n, C, H, W]
    names: tuple[str, ...]  # of the classes
    starts: Index
    counts: Index


def with_rotations(table: ImageTable) -> ImageTable:
    """Four copies of every class, turned by 0, 90, 180 and 270 degrees: class c + r * classes is c turned r times."""
    images = torch.cat([torch.rot90(table.images, r, (2, 3)) for r in range(4)])
    names = tuple(f"{name}/rot{90 * r:03d}" for r in range(4) for name in table.names)
    starts = np.concatenate([table.starts + r * len(table.images) for r in range(4)])
    return ImageTable(images, names, starts, np.tile(table.counts, 4))


@dataclass(frozen=True)
class ImageEpisodes:
    """Draws episodes of one split. A class of an episode is a row of `classes`, in one of its variants.

    Classes are uniform over the split without replacement, variants uniform, images uniform within the class without
    replacement (so support and query are disjoint), and labels are the order of the draw.
    """

    table: ImageTable
    classes: Index  # [C, R] table classes: R variants of each of C classes

    def check(self, spec: EpisodeSpec, split: Split) -> None:
        """Raise `SettingError` when an episode of this size cannot be drawn."""
        count = len(self.classes)
        require(2 <= spec.ways <= count, "ways", spec.ways, f"must be 2 to {count}, the classes of the {split} split")
        require(spec.shots >= 1, "shots", spec.shots, "must be at least 1")
        images = int(self.table.counts[self.classes].min())
        room = f"must be 1 to {images - spec.shots}: a class has {images} images and {spec.shots} are support"
        require(spec.shots < images, "shots", spec.shots, f"must be below {images}, the images of a class")
        require(1 <= spec.queries <= images - spec.shots, "queries", spec.queries, room)

    def draw(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        """Images as float32 in [0, 1], rows ordered shot by shot: row k N + n is of class n."""
        rows_TNE = self._rows(split, seed, step, tasks, spec)
        k = spec.shots
        return Task(self._batch(rows_TNE[:, :, :k], spec.ways), self._batch(rows_TNE[:, :, k:], spec.ways))

    def _rows(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Index:
        """Rows of the image tensor, [T, N, K + Q]."""
        classes, most = len(self.classes), int(self.table.counts[self.classes].max())
        bits = random_bits(split, seed, step, tasks, classes + spec.ways * (1 + most))
        class_bits, variant_bits, image_bits = np.split(bits, [classes, classes + spec.ways], axis=1)
        variant_TN = uniform(variant_bits, 0, self.classes.shape[1]).astype(np.intp)
        class_TN = self.classes[choose(class_bits, spec.ways), variant_TN]
        image_TNI = image_bits.reshape(len(tasks), spec.ways, most)
        image_TNE = choose(self._existing(image_TNI, class_TN), spec.shots + spec.queries)
        return self.table.starts[class_TN][:, :, None] + image_TNE

    def _existing(self, image_TNI: Bits, class_TN: Index) -> Bits:
        """Words of images that a smaller class lacks become the largest, so that they are not chosen."""
        missing = np.arange(image_TNI.shape[-1]) >= self.table.counts[class_TN][:, :, None]
        return np.where(missing, np.iinfo(np.uint64).max, image_TNI)

    def _batch(self, rows_TNE: Index, ways: int) -> Batch:
        tasks, _, each = rows_TNE.shape
        rows = torch.from_numpy(np.ascontiguousarray(rows_TNE.transpose(0, 2, 1)).reshape(tasks, -1))
        images = self.table.images[rows.to(self.table.images.device)]
        return Batch(images.to(torch.float32) / 255, torch.arange(ways).repeat(each).expand(tasks, -1))


def members_sha256(members: dict[str, list[str]]) -> str:
    """The hash of a split: which class names each part holds, whatever their order."""
    text = "\n".join(f"{split}:{name}" for split in sorted(members) for name in sorted(members[split]))
    return hashlib.sha256(text.encode()).hexdigest()
