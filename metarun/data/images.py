"""Image data sets: one uint8 tensor sorted by class, and episodes gathered from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.compute.random import Bits, choose, random_bits, uniform
from metarun.errors import require
from metarun.types import Batch, EpisodeSpec, Split, Task

Index = NDArray[np.intp]


class ImageTable(NamedTuple):
    """All images of a data set; class c owns rows starts[c] .. starts[c] + counts[c] - 1."""

    images: Tensor  # uint8 [n, C, H, W]
    names: tuple[str, ...]  # of the classes
    starts: Index
    counts: Index
    forget: Callable[[int], None] = lambda count: None  # told how many bytes were read; gives mapped pages back


@dataclass(frozen=True)
class ImageEpisodes:
    """Draws episodes of one split. A class of an episode is a row of `classes`, in one of its variants.

    Variant v is table class v mod C turned by v div C quarters (C classes in the table), so that rotations need no
    copies of the images. Classes are uniform over the split without replacement, variants uniform, images uniform
    within the class without replacement (so support and query are disjoint), and labels are the order of the draw.
    """

    table: ImageTable
    classes: Index  # [M, R] variants: R of each of the M classes of the split

    def check(self, spec: EpisodeSpec, split: Split) -> None:
        """Raise `SettingError` when an episode of this size cannot be drawn."""
        count = len(self.classes)
        require(2 <= spec.ways <= count, "ways", spec.ways, f"must be 2 to {count}, the classes of the {split} split")
        require(spec.shots >= 1, "shots", spec.shots, "must be at least 1")
        images = self.fewest()
        name = self.table.names[int(self.classes[self._counts(self.classes[:, 0]).argmin(), 0]) % len(self.table.names)]
        room = f"must be 1 to {images - spec.shots}: class {name} has {images} images and {spec.shots} are support"
        require(spec.shots < images, "shots", spec.shots, f"must be below {images}, the images of class {name}")
        require(1 <= spec.queries <= images - spec.shots, "queries", spec.queries, room)

    def fewest(self) -> int:
        """The images of the smallest class."""
        return int(self._counts(self.classes).min())

    def draw(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        """Images as bytes, rows ordered shot by shot: row k N + n is of class n."""
        rows_TNE, turns_TN = self._rows(split, seed, step, tasks, spec)
        k = spec.shots
        return Task(self._batch(rows_TNE[:, :, :k], turns_TN), self._batch(rows_TNE[:, :, k:], turns_TN))

    def _rows(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> tuple[Index, Index]:
        """Rows of the image tensor [T, N, K + Q], and the quarter turns of each class [T, N]."""
        classes, most = len(self.classes), int(self._counts(self.classes).max())
        bits = random_bits(split, seed, step, tasks, classes + spec.ways * (1 + most))
        class_bits, variant_bits, image_bits = np.split(bits, [classes, classes + spec.ways], axis=1)
        variant_TN = uniform(variant_bits, 0, self.classes.shape[1]).astype(np.intp)
        turns_TN, class_TN = np.divmod(self.classes[choose(class_bits, spec.ways), variant_TN], len(self.table.names))
        image_TNI = image_bits.reshape(len(tasks), spec.ways, most)
        image_TNE = choose(self._existing(image_TNI, class_TN), spec.shots + spec.queries)
        return self.table.starts[class_TN][:, :, None] + image_TNE, turns_TN

    def _existing(self, image_TNI: Bits, class_TN: Index) -> Bits:
        """Words of images that a smaller class lacks become the largest, so that they are not chosen."""
        missing = np.arange(image_TNI.shape[-1]) >= self._counts(class_TN)[:, :, None]
        return np.where(missing, np.iinfo(np.uint64).max, image_TNI)

    def _counts(self, variants: Index) -> Index:
        return self.table.counts[variants % len(self.table.names)]

    def _batch(self, rows_TNE: Index, turns_TN: Index) -> Batch:
        tasks, ways, each = rows_TNE.shape
        rows = torch.from_numpy(np.ascontiguousarray(rows_TNE.transpose(0, 2, 1)).reshape(-1))
        images = torch.index_select(self.table.images, 0, rows.to(self.table.images.device))
        self.table.forget(images.numel())
        turns = torch.from_numpy(np.repeat(turns_TN[:, None], each, axis=1).reshape(-1))
        for quarter in (1, 2, 3):
            turned = (turns == quarter).nonzero().flatten().to(images.device)
            if len(turned):
                images[turned] = torch.rot90(images[turned], quarter, (2, 3))
        shape = (tasks, each * ways, *images.shape[1:])
        return Batch(images.view(shape), torch.arange(ways).repeat(each).expand(tasks, -1))


def variants(classes: Index, total: int, rotations: str) -> Index:
    """Classes of a split -> the variants [M, R] that its episodes choose from, given all classes of the table.

    `classes`: each of four rotations is a class of its own; `task`: a class has one of them for an episode; `none`.
    """
    turned = np.add.outer(classes, np.arange(1 if rotations == "none" else 4) * total)
    return turned.reshape(-1, 1) if rotations == "classes" else turned


def members_sha256(members: dict[str, list[str]]) -> str:
    """The hash of a split: which class names each part holds, whatever their order."""
    text = "\n".join(f"{split}:{name}" for split in sorted(members) for name in sorted(members[split]))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
