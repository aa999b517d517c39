"""Image data sets: one uint8 tensor sorted by class, and episodes gathered from it.

`omniglot.py` and `folder.py` make them. Nothing is read before the first episode is drawn.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metarun.compute.random import Bits, choose, random_bits, uniform
from metarun.data.augment import Augmentation
from metarun.data.contact_sheet import EPISODES_SHOWN, draw_sheet
from metarun.data.pixels import Pixels, summarize_bytes
from metarun.errors import SettingError, UserError, nearest, require
from metarun.types import Batch, EpisodeSpec, Kind, Split, Task

Index = NDArray[np.intp]
ROTATIONS = ("classes", "train", "task", "none")


class ImageTable(NamedTuple):
    """All images of a data set; class c owns rows starts[c] .. starts[c] + counts[c] - 1."""

    images: Tensor  # uint8 [n, C, H, W]
    names: tuple[str, ...]  # of the classes
    starts: Index
    counts: Index
    files: Sequence[str] = ()  # the name of each image below the data's root
    release: Callable[[int], None] = lambda count: None  # called after reading so many bytes; releases mapped pages


@dataclass(frozen=True)
class ImageEpisodes:
    """Draws episodes of one split. A class of an episode is a row of `classes`, in one of its variants.

    Variant v is table class v mod C turned by v div C quarters (C classes in the table), so that rotations need no
    copies of the images. Classes are uniform over the split without replacement, variants uniform, images uniform
    within the class without replacement (so support and query are disjoint), and labels are the order of the draw.
    With `groups` all classes of an episode are of one group, uniform over those with enough classes. With `disjoint` no
    two tasks of a step share a class: task i has classes i N .. (i+1) N - 1 of one order of all classes. With
    `numbered` a label is the row of its class in `classes`, the same in every episode.
    """

    table: ImageTable
    classes: Index  # [M, R] variants: R of each of the M classes of the split
    groups: Index | None = None  # [M] the group of each, as the alphabet of a character
    disjoint: bool = False
    numbered: bool = False

    def check(self, spec: EpisodeSpec, split: Split) -> None:
        """Raise `SettingError` if an episode of this size cannot be drawn."""
        count = len(self.classes)
        room = f"must be 2 to {count}, the classes of the {split} split"
        if self.groups is not None and count:
            count = int(np.unique(self.groups, return_counts=True)[1].max())
            room = f"must be 2 to {count}, the classes of the largest group of the {split} split (data.within)"
        if count < 2:
            room = f"the {split} split has {count} class, and a task needs 2 or more"
        require(2 <= spec.ways <= count, "ways", spec.ways, room)
        require(spec.shots >= 1, "shots", spec.shots, "must be at least 1")
        images = self.smallest_class()
        name = self.table.names[int(self.classes[self._counts(self.classes[:, 0]).argmin(), 0]) % len(self.table.names)]
        room = f"must be 1 to {images - spec.shots}: class {name} has {images} images and {spec.shots} are support"
        require(spec.shots < images, "shots", spec.shots, f"must be below {images}, the images of class {name}")
        require(1 <= spec.queries <= images - spec.shots, "queries", spec.queries, room)

    def smallest_class(self) -> int:
        """The number of images of the smallest class."""
        return int(self._counts(self.classes).min())

    def draw(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        """Images as bytes, rows ordered shot by shot: row k N + n is of class n."""
        turns_TN, rows_TNE = self.draw_rows(split, seed, step, tasks, spec)
        labels_TN = np.broadcast_to(np.arange(spec.ways), turns_TN.shape)
        if self.numbered:
            labels_TN, _, _ = self._choose_classes(split, seed, step, tasks, spec)
        k = spec.shots
        parts = rows_TNE[:, :, :k], rows_TNE[:, :, k:]
        return Task(*(self._batch(part, turns_TN, labels_TN) for part in parts))

    def draw_rows(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> tuple[Index, Index]:
        """The quarter turns of each task's classes [T, N], and the rows of their images [T, N, K + Q]."""
        turns_TN, class_TN, image_TNI = self.draw_classes(split, seed, step, tasks, spec)
        most = image_TNI.shape[2]
        # Images that a smaller class lacks get the largest word, so that they are not chosen.
        missing = np.arange(most) >= self._counts(class_TN)[:, :, None]
        image_TNI = np.where(missing, np.iinfo(np.uint64).max, image_TNI)
        image_TNE = choose(image_TNI, spec.shots + spec.queries)
        return turns_TN, self.table.starts[class_TN][:, :, None] + image_TNE

    def draw_classes(
        self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec
    ) -> tuple[Index, Index, Bits]:
        """The quarter turns and the classes of each task [T, N], and random words for their images [T, N, most]."""
        chosen_TN, variant_bits, image_bits = self._choose_classes(split, seed, step, tasks, spec)
        variant_TN = uniform(variant_bits, 0, self.classes.shape[1]).astype(np.intp)
        turns_TN, class_TN = np.divmod(self.classes[chosen_TN, variant_TN], len(self.table.names))
        return turns_TN, class_TN, image_bits.reshape(len(tasks), spec.ways, -1)

    def _choose_classes(
        self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec
    ) -> tuple[Index, Bits, Bits]:
        """The rows of `classes` of each task [T, N], and random words for their variants and their images."""
        classes, most = len(self.classes), int(self._counts(self.classes).max())
        bits = random_bits(split, seed, step, tasks, classes + spec.ways * (1 + most) + (self.groups is not None))
        class_bits, variant_bits, image_bits = np.split(bits, [classes, classes + spec.ways], axis=1)
        if self.groups is not None:
            sizes = np.bincount(self.groups)
            large = np.flatnonzero(sizes >= spec.ways)
            chosen = large[uniform(bits[:, -1], 0, len(large)).astype(np.intp)]
            # Classes of other groups get the largest word, so that they are not chosen.
            class_bits = np.where(self.groups == chosen[:, None], class_bits, np.iinfo(np.uint64).max)
            image_bits = image_bits[:, :-1]
        chosen_TN = choose(class_bits, spec.ways)
        if self.disjoint:
            order = choose(random_bits(split, seed, step, range(1), classes), classes)[0]
            chosen_TN = order[tasks.start * spec.ways : tasks.stop * spec.ways].reshape(len(tasks), spec.ways)
        return chosen_TN, variant_bits, image_bits

    def _counts(self, variants: Index) -> Index:
        """The number of images of each variant's class."""
        return self.table.counts[variants % len(self.table.names)]

    def _batch(self, rows_TNE: Index, turns_TN: Index, labels_TN: Index) -> Batch:
        """Gather rows of the image tensor [T, N, K] and rotate them by the quarter turns of each class [T, N]."""
        tasks, ways, each = rows_TNE.shape
        rows = torch.from_numpy(np.ascontiguousarray(rows_TNE.transpose(0, 2, 1)).reshape(-1))
        images = torch.index_select(self.table.images, 0, rows.to(self.table.images.device))
        self.table.release(images.numel())
        turns = torch.from_numpy(np.repeat(turns_TN[:, None], each, axis=1).reshape(-1))
        for quarter in (1, 2, 3):
            index = (turns == quarter).nonzero().flatten().to(images.device)
            if len(index):
                images[index] = torch.rot90(images[index], quarter, (2, 3))
        shape = (tasks, each * ways, *images.shape[1:])
        return Batch(images.view(shape), torch.from_numpy(np.tile(labels_TN, (1, each)).astype(np.int64)))


def suggest_ratios(ways: int, classes: int) -> str:
    """What to write so that val and test have `ways` classes each, and training the others, at least as many."""
    if classes < 6:
        return "2 ways in each need 6 classes"
    if ways > classes // 3:
        return f"{ways} ways in each need {3 * ways} classes, and {classes} are enough for data.ways={classes // 3}"
    part = round(ways / classes, 2 if classes < 50 else 4)
    return f"data.ratios=[{round(1 - 2 * part, 4)},{part},{part}] gives {classes - 2 * ways}, {ways} and {ways}"


def make_variants(classes: Index, total: int, rotations: str) -> Index:
    """Classes of a split -> the variants [M, R] that its episodes choose from; the table has `total` classes.

    `classes`: each of four rotations is a class; `task`: a class has one of them in an episode; `none`.
    """
    rotated = np.add.outer(classes, np.arange(1 if rotations == "none" else 4) * total)
    return rotated.reshape(-1, 1) if rotations == "classes" else rotated


def number_groups(names: Sequence[str]) -> Index:
    """The group of each class [M], what stands before the last slash of its name. Raise `SettingError` without any."""
    found, numbers = np.unique([name.rpartition("/")[0] for name in names], return_inverse=True)
    needed = "these classes have no groups: their names need a folder, as in group/class (data.classes=leaf); a column "
    needed += "of data.csv can be one too"
    require(len(names) == 0 or len(found) > 1 or found[0] != "", "within", "group", needed)
    return numbers.astype(np.intp)


def members_sha256(members: dict[str, list[str]]) -> str:
    """The hash of a split: the class names of each part, in any order."""
    text = "\n".join(f"{split}:{name}" for split in sorted(members) for name in sorted(members[split]))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class Source(NamedTuple):
    """The decoded images of a data set, and the classes of each split."""

    table: ImageTable
    splits: dict[Split, Index]
    split: str  # its name
    notes: dict[str, Any]  # further facts
    cache: Path  # the file of the decoded images
    columns: Mapping[str, Mapping[str, str]] = {}  # of a table: column -> class -> value
    uneven: Mapping[str, str] = {}  # further columns -> why a class has no value there


@dataclass(frozen=True)
class ImageData:
    """Classification of images. `load` reads the images; its argument says whether to verify the cache."""

    pixels: Pixels
    rotations: str
    augmentation: Augmentation
    load: Callable[[bool], Source]
    within: str | None = None  # a column, or group: all classes of an episode have one value of it, as an alphabet
    disjoint_tests: bool = False  # no two test tasks share a class, nor a class turned by quarters
    numbered_training: bool = False  # training labels are the numbers of the classes
    original: ImageData | None = None  # the images, where `load` reads their features in place of pixels

    kind: ClassVar[Kind] = "classification"
    row: ClassVar[str] = "picture"

    def __post_init__(self) -> None:
        require(self.rotations in ROTATIONS, "rotations", self.rotations, "choices: " + ", ".join(ROTATIONS))
        crop = self.augmentation.crop
        require(crop < self.pixels.size, "crop", crop, f"must be below data.image_size={self.pixels.size}")

    def input_shape(self) -> tuple[int, ...]:
        return self.pixels.shape if self.original is None else tuple(self.source.table.images.shape[1:])

    def outputs(self, ways: int) -> int:
        return ways

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        counts = {s: len(ids) for s, ids in self.source.splits.items()}
        has = ", ".join(f"{n} for {s}" for s, n in counts.items() if n)
        if counts[split] == 0:
            needed = f"leaves no class for {split} ({has}); ratio divides all classes, all makes them test classes"
            raise SettingError("split", self.source.split, needed)
        try:
            self._episodes[split].check(spec, split)
        except SettingError as error:
            total = len(self.source.table.names)
            if error.key != "ways" or self.within or counts["test"] == total or "layout" not in self.source.notes:
                raise
            advice = f"{error.expected}: the {total} classes are divided into {has}"
            by_ratio = self.source.split == "ratio" and split != "train" and spec.ways > 1
            advice += f"; {suggest_ratios(spec.ways, total)}" if by_ratio else ""
            advice += f"; data.split=all tests a trained run on all {total} classes" if split == "test" else ""
            raise SettingError("ways", spec.ways, advice) from error

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        """Images as float32, in training augmented if so set, then normalised."""
        drawn = self._episodes[split].draw(split, seed, step, tasks, spec)
        if split != "train" or not self.augmentation.active:
            return Task(*(Batch(self._to_inputs(b.x), b.y) for b in drawn))
        changed = (self.augmentation(b.x / 255, seed, step, tasks, part) for part, b in enumerate(drawn))
        return Task(*(Batch(self.pixels.standardize(x), b.y) for x, b in zip(changed, drawn, strict=True)))

    def class_names(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> list[tuple[str, ...]]:
        """The classes of each task in the order of their labels; of a rotated one with its angle."""
        turns_TN, class_TN, _ = self._episodes[split].draw_classes(split, seed, step, tasks, spec)
        names, angles = self.source.table.names, ("", " 90", " 180", " 270")
        pairs = zip(class_TN.tolist(), turns_TN.tolist(), strict=True)
        return [tuple(names[c] + angles[q] for c, q in zip(*pair, strict=True)) for pair in pairs]

    def query_names(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> list[list[str]]:
        """The files of each task's queries, in their order."""
        _, rows_TNE = self._episodes[split].draw_rows(split, seed, step, tasks, spec)
        rows_TM = rows_TNE[:, :, spec.shots :].swapaxes(1, 2).reshape(len(tasks), -1)
        return [[self.source.table.files[row] for row in rows] for rows in rows_TM.tolist()]

    def reference_inputs(self, count: int) -> Tensor:
        """One image of each of `count` training classes (several if there are fewer), drawn with seed 0 at a step that
        no training reaches, never augmented. Without training classes they are of the first split that has some."""
        episodes = next(e for e in self._episodes.values() if len(e.classes))
        ways = min(count, len(episodes.classes))
        shots = min(-(-count // ways), episodes.smallest_class())
        episodes = replace(episodes, groups=None)  # of all groups
        drawn = episodes.draw("train", 0, 2**63, range(1), EpisodeSpec(ways, shots, queries=0))
        return self._to_inputs(drawn.support.x[0][:count])

    def _to_inputs(self, x: Tensor) -> Tensor:
        return self.pixels.to_inputs(x) if self.original is None else x

    def embed(self, read: Callable[..., Callable[[bool], Source]]) -> ImageData:
        """The same episodes of features, [n, D] in place of pixels, that `read(load, pixels)` loads; or these data
        themselves, where augmentation or quarter turns change an image from one episode to the next."""
        changing = self.augmentation.active or self.rotations != "none"
        return self if changing else replace(self, load=read(self.load, self.pixels), original=self)

    def facts(self) -> dict[str, Any]:
        pixels = self.pixels
        return {
            "split": self.source.split,
            "split_sha256": members_sha256(self.members),
            "classes": {split: len(e.classes) for split, e in self._episodes.items()},
            "images_are": str(pixels),
            "rotations": self.rotations,
            "image_size": pixels.size,
            "channels": pixels.channels,
            "resize": pixels.resize,
            "fit": pixels.fit,
            "normalize": pixels.normalize,
            **({"within": self.within} if self.within else {}),
            **self.source.notes,
        }

    def describe(self) -> dict[str, Any]:
        """The facts and the size of the data set, after verifying the cache."""
        source = self._load(verify=True)
        counts = {split: source.table.counts[ids] for split, ids in source.splits.items()}
        return self.facts() | {
            "parts": {
                s: {
                    "classes": len(c),
                    "images": int(c.sum()),
                    "fewest": int(c.min(initial=c.sum())),
                    "most": int(c.max(initial=0)),
                }
                for s, c in counts.items()
            },
            "values": summarize_bytes(source.table.images),
            "cache": str(source.cache),
            "cache_mb": source.cache.stat().st_size / 2**20,
        }

    def disjoint(self, ways: int) -> tuple[ImageData, int]:
        """The same data with test tasks that share no class, and how many of so many ways there are."""
        require(self.within is None, "within", self.within, "must be null with test.classes=disjoint")
        original = self.original and self.original.disjoint(ways)[0]  # the episodes that a test shows
        return replace(self, disjoint_tests=True, original=original), len(self.source.splits["test"]) // ways

    def numbered(self) -> tuple[ImageData, int]:
        """The same data with the numbers of the classes as labels of training episodes, and how many there are: a class
        in four rotations is four, where its rotations are classes."""
        return replace(self, numbered_training=True), len(self._episodes["train"].classes)

    def contact_sheet(self, spec: EpisodeSpec) -> Image.Image:
        """The first training episodes below each other, augmented as in training: a row per class, support on the left,
        queries on the right. Images are the inputs of the network, without normalisation."""
        split = next(split for split, ids in self.source.splits.items() if len(ids))  # training, if there are any
        if self.within is None:  # of few classes all
            spec = spec._replace(ways=min(spec.ways, len(self.source.splits[split])))
        self.check(split, spec)
        episodes = self.episodes(split, 0, 0, range(EPISODES_SHOWN), spec)
        return draw_sheet(episodes, self.pixels, spec)

    @functools.cached_property
    def members(self) -> dict[str, list[str]]:
        """The class names of each split."""
        return {split: [self.source.table.names[i] for i in ids] for split, ids in self.source.splits.items()}

    @functools.cached_property
    def source(self) -> Source:
        return self._load(verify=False)

    def _load(self, verify: bool) -> Source:
        try:
            return self.load(verify)
        except SettingError as error:  # name the whole key: callers do not know that it is one of data
            raise UserError(str(error.under("data"))) from error

    @functools.cached_property
    def _episodes(self) -> dict[Split, ImageEpisodes]:
        table, splits = self.source.table, self.source.splits
        episodes = {}
        for split, classes in splits.items():
            rotations = self.rotations
            if rotations == "train":
                rotations = "classes" if split == "train" else "none"
            disjoint = self.disjoint_tests and split == "test"
            if disjoint and rotations == "classes":
                rotations = "task"  # two turns of one image are not independent
            variants = make_variants(classes, len(table.names), rotations)
            groups = None if self._groups is None else self._groups[variants[:, 0] % len(table.names)]
            numbered = self.numbered_training and split == "train"
            episodes[split] = ImageEpisodes(table, variants, groups, disjoint, numbered)
        return episodes

    @functools.cached_property
    def _groups(self) -> Index | None:
        """The number of the value that each class of the table has in the column `within`; None without one."""
        source, name = self.source, (self.within or "").strip().lower()
        if not name:
            return None
        if name in source.columns:
            values = [source.columns[name][label] for label in source.table.names]
            return np.unique(values, return_inverse=True)[1].astype(np.intp)
        if name in source.uneven:
            raise SettingError("within", self.within, f"needs one value for each class, but {source.uneven[name]}")
        if name != "group":
            known = {*source.columns, *source.uneven}
            table = "these images have no table; data.csv names one, and data.within=group takes the folder of a class"
            there_is = f"the table has no such column, {nearest(name, known)}" if known else table
            raise SettingError("within", self.within, there_is)
        return number_groups(source.table.names)
