"""Images that people have in files: folders, a csv or an archive of classes; among them miniImageNet in each layout.

With `benchmark=miniimagenet` results say whether classes and split are those of Ravi and Larochelle 2017, which
published figures are of, and a plain folder of the hundred classes is cut as they did.

Images beside a data set: labelled examples of new classes, and pictures to be labelled.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarun.data.augment import Augmentation
from metarun.data.cache import Decoded, cached_images
from metarun.data.decoding import Read, Unreadable, write_images
from metarun.data.fetch import Download, as_downloads, fetch
from metarun.data.files import Files, fingerprint, is_archive, open_files, user_path
from metarun.data.images import ImageData, Source
from metarun.data.layouts import IMAGES, Layout, recognise
from metarun.data.miniimagenet import RAVI, read_pickles
from metarun.data.pixels import CorruptImage, Pixels
from metarun.data.splits import SplitSettings, check_split, choose_split, limit_training_classes, split_classes
from metarun.errors import SettingError, UserError, require
from metarun.storage.cache_folder import cache_folder

BENCHMARKS = {"miniimagenet": ("mini-imagenet", "miniimagenet", "mini_imagenet", "miniImageNet")}
"""Where people keep them below a folder of data sets."""

ON_CORRUPT = ("fail", "skip")
LAYOUTS = (
    "folders train, val, test of class folders; train.csv, val.csv, test.csv (filename,label) with a folder images; "
    "a folder per class; a csv filename,label[,split] (data.csv); the pickles mini-imagenet-cache-{train,val,test}.pkl;"
    " or one archive (zip, tar, tar.gz) of any of these"
)
NO_COPY = (
    "miniImageNet may not be redistributed, so metarun cannot fetch it: make it from ILSVRC-2012 "
    "(image-net.org) with Ravi's csv files (github.com/twitter-research/meta-learning-lstm), or use the copy that your "
    "group has, and give it as data.root=PATH"
)


def image_folder(
    root: str | None,
    csv: str | None,
    urls: list[Any],
    split: str,
    split_seed: int,
    ratios: list[float],
    image_size: int,
    channels: int,
    resize: str,
    fit: str,
    normalize: str,
    rotations: str,
    crop: int,
    flip: bool,
    jitter: float,
    on_corrupt: str,
    benchmark: str | None,
    train_classes: int | None = None,
) -> ImageData:
    """The data set of these settings; conf/data/folder.yaml says what each means."""
    require(on_corrupt in ON_CORRUPT, "on_corrupt", on_corrupt, "choices: " + ", ".join(ON_CORRUPT))
    require(benchmark in (None, *BENCHMARKS), "benchmark", benchmark, "choices: null, " + ", ".join(BENCHMARKS))
    settings = SplitSettings(split, split_seed, tuple(ratios))
    check_split(settings)
    pixels = Pixels(image_size, channels, resize, fit, normalize)
    load = ImageFiles(root, csv, as_downloads(urls), settings, pixels, on_corrupt, benchmark, train_classes)
    return ImageData(pixels, rotations, Augmentation(crop, flip, jitter), load)


class Found(NamedTuple):
    layout: Layout
    read: Read


@dataclass(frozen=True)
class ImageFiles:
    """Calling it gives the decoded images and the split: from the cache, or from the files at `root`."""

    root: str | None
    csv: str | None
    downloads: tuple[Download, ...]
    split: SplitSettings
    pixels: Pixels
    on_corrupt: str
    benchmark: str | None
    train_classes: int | None

    def __call__(self, verify: bool) -> Source:
        place = self._place()
        decoding = [self.csv, *self.pixels.shape, self.pixels.resize, self.pixels.fit, self.on_corrupt]
        key = f"{fingerprint(place)} {decoding}"
        cached = cached_images(self.benchmark or "folder", key, lambda file: self._decode(place, file), verify)
        names, given = cached.table.names, cached.notes["given"]
        known = not (self.benchmark and self.split.split == "auto" and choose_split(names, given) == "ratio")
        others = f"has no split, and its classes are not those of {self.benchmark}; data=folder takes any"
        require(known, "root", place, others)
        split, splits = split_classes(names, given, self.split)
        splits = limit_training_classes(splits, self.train_classes, self.split.split_seed)
        notes = {"layout": cached.notes["layout"], "images": int(cached.table.counts.sum())}
        notes |= {"skipped": len(cached.notes["skipped"])} | self._caveat(names, split)
        notes |= {} if self.train_classes is None else {"train_classes": self.train_classes}
        return Source(cached.table, splits, split, notes, cached.path)

    def _place(self) -> Path:
        """The folder or archive; files that can be downloaded are fetched into it first."""
        root = self.root or (os.environ.get("METARUN_DATA") if self.benchmark else None)
        known = root is not None or bool(self.downloads)
        require(known, "root", root, f"give the place of the images. {self._ways()}")
        folder = user_path(root) if root else cache_folder() / "data" / self._download_name()
        if self.downloads:
            fetch(self.downloads, folder)
        below = [folder / name for name in BENCHMARKS.get(self.benchmark or "", ())]
        place = next((p for p in below if p.is_dir()), folder)
        require(place.exists(), "root", folder, f"there is no such folder or archive. {self._ways()}")
        return place

    def _download_name(self) -> str:
        """Of the folder for files that are downloaded without a root: another one for other files."""
        first = self.downloads[0]
        return f"{first.file.partition('.')[0]}-{first.checksum.partition(':')[2][:8]}"

    def _decode(self, place: Path, file: BinaryIO) -> Decoded:
        found = self._find(place)
        skip = self.on_corrupt == "skip"
        try:
            decoded = write_images(file, found.layout.entries, found.read, self.pixels, skip)
        except Unreadable as error:
            raise SettingError("root", place, f"{error}; data.on_corrupt=skip leaves such images out") from error
        given = {entry.label: entry.split for entry in found.layout.entries}
        return decoded._replace(notes=decoded.notes | {"layout": found.layout.name, "given": given})

    def _find(self, place: Path) -> Found:
        """The layout at the place, or in the one archive that lies there."""
        try:
            found = self._recognise(_opened(place))
        except SettingError:
            raise
        except UserError as error:
            raise SettingError("root", place, str(error)) from error
        if found is None:
            raise SettingError("root", place, f"holds none of the layouts that are read. {self._ways()}")
        return found

    def _recognise(self, files: Files) -> Found | None:
        arrays = read_pickles(files)
        if arrays is not None:
            return Found(*arrays)
        layout = recognise(files, self.csv)
        return layout and Found(layout, lambda entries: files.read(entry.name for entry in entries))

    def _ways(self) -> str:
        return (f"{NO_COPY}. " if self.benchmark else "") + f"Layouts that are read: {LAYOUTS}"

    def _caveat(self, names: tuple[str, ...], split: str) -> dict[str, str]:
        """What figures must not be compared with, if there is something."""
        if self.benchmark is None or split == "ravi":
            return {}
        known = {n for part in RAVI.values() for n in part}
        what = "in a split that is not Ravi's" if set(names) == known else "of other classes"
        return {"caveat": f"not the published {self.benchmark}: images {what}, figures cannot be compared with papers"}


def _opened(place: Path) -> Files:
    """The files at the place, or in the one archive that lies there without other data."""
    files = open_files(place)
    archives = [name for name in files.names if is_archive(Path(name))]
    data = [name for name in files.names if name.lower().endswith((*IMAGES, ".pkl"))]
    return open_files(place / archives[0]) if place.is_dir() and len(archives) == 1 and not data else files


class Examples(NamedTuple):
    """Labelled images, shot by shot: the first of every class, then the second of every class that has one."""

    classes: tuple[str, ...]
    x: Tensor  # [S, C, H, W], as a network takes them
    y: Tensor  # [S], numbers of classes
    shots: tuple[int, int]  # the fewest and the most of a class


class Pictures(NamedTuple):
    files: tuple[str, ...]  # names below the folder
    x: Tensor  # [M, C, H, W]


def read_examples(place: Path, pixels: Pixels) -> Examples:
    """A folder (or archive) with a folder of images per class."""
    _existing("predict.support", place)
    try:
        files = open_files(place)
        layout = recognise(files)
    except UserError as error:
        raise UserError(f"predict.support={place}: {error}") from error
    if layout is None:
        raise SettingError("predict.support", place, "must hold a folder of images for each of two classes or more")
    classes = tuple(dict.fromkeys(entry.label for entry in layout.entries))
    by_class = groupby(layout.entries, key=lambda entry: entry.label)
    rows = sorted((shot, entry.label, entry.name) for _, group in by_class for shot, entry in enumerate(group))
    names = [name for _, _, name in rows]
    y = torch.tensor([classes.index(label) for _, label, _ in rows])
    counts = y.bincount()
    return Examples(classes, _inputs(names, files, pixels), y, (int(counts.min()), int(counts.max())))


def read_pictures(place: Path, pixels: Pixels) -> Pictures:
    """One image, or all below a folder (or in an archive)."""
    _existing("predict.query", place)
    if place.is_file() and not is_archive(place):
        files = open_files(place.parent)
        names = [place.name]
    else:
        files = open_files(place)
        names = [name for name in files.names if name.lower().endswith(IMAGES)]
    if not names:
        raise SettingError("predict.query", place, f"holds no image; endings that are read: {', '.join(IMAGES)}")
    return Pictures(tuple(names), _inputs(names, files, pixels))


def _existing(key: str, place: Path) -> Path:
    if not place.exists():
        raise SettingError(key, place, "there is no such file or folder")
    return place


def _inputs(names: Sequence[str], files: Files, pixels: Pixels) -> Tensor:
    images = []
    for name, content in zip(names, files.read(names), strict=True):
        try:
            images.append(pixels.decode(content))
        except CorruptImage as error:
            raise UserError(f"{files.path / name}: is not a readable image ({error})") from error
    return pixels.to_inputs(torch.from_numpy(np.stack(images)))
