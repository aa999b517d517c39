"""Your own images: folders, a csv or an archive of classes; among them the benchmarks in each layout.

With a benchmark the results say whether classes and split are the published ones, and a plain folder of its classes is
split in the published way.

`read_examples` and `read_pictures` read the images of `job=predict`: labelled ones of new classes, and unlabelled ones.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarun.data.array_files import read_arrays
from metarun.data.augment import Augmentation
from metarun.data.benchmarks import BENCHMARKS
from metarun.data.cache import DecodedImages, cache_images
from metarun.data.decoding import Read, UnreadableImage, write_images
from metarun.data.fetch import Download, fetch, parse_downloads
from metarun.data.files import Files, expand_path, fingerprint, is_archive, open_files
from metarun.data.image_list import class_columns
from metarun.data.images import ImageData, Index, Source
from metarun.data.layouts import CLASSES, IMAGES, Layout, recognise
from metarun.data.pixels import CorruptImage, Pixels
from metarun.data.splits import SplitSettings, check_split, choose_split, limit_training_classes, split_classes
from metarun.data.torchvision_sets import SETS, open_parts, read_torchvision
from metarun.errors import SettingError, UserError, require
from metarun.storage.run_folder import cache_folder
from metarun.types import Split

ON_CORRUPT = ("fail", "skip")
NAMED = 3  # examples that facts name
LAYOUTS = (
    "folders train, val, test of class folders; train.csv, val.csv, test.csv (filename,label) with a folder images; "
    "a folder per class; a csv filename,label[,split] (data.csv); pickles or npz files of splits, as "
    "mini-imagenet-cache-{train,val,test}.pkl; cifar-100-python; or one archive (zip, tar, tar.gz) of any of these"
)


def image_folder(
    root: str | None,
    csv: str | None,
    urls: list[Any],
    split: str,
    split_seed: int,
    ratios: list[float] | None,
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
    classes: str = "auto",
    within: str | None = None,
    depth: int | None = None,
    name: str | None = None,
    download: bool | None = None,
    resized_crop: list[float] | None = None,
) -> ImageData:
    """The data set of these settings, which conf/data/folder.yaml explains."""
    require(on_corrupt in ON_CORRUPT, "on_corrupt", on_corrupt, "choices: " + ", ".join(ON_CORRUPT))
    require(benchmark in (None, *BENCHMARKS), "benchmark", benchmark, "choices: null, " + ", ".join(BENCHMARKS))
    require(classes in CLASSES, "classes", classes, "choices: " + ", ".join(CLASSES))
    settings = SplitSettings(split, split_seed, None if ratios is None else tuple(ratios))
    check_split(settings)
    pixels = Pixels(image_size, channels, resize, fit, normalize, depth=depth)
    require(name in SETS or (name is None and download is None), "name", name, "choices: " + ", ".join(sorted(SETS)))
    files = (root, csv, parse_downloads(urls), settings, pixels, on_corrupt, benchmark, train_classes, classes)
    load = ImageFiles(*files, name, bool(download))
    augmentation = Augmentation(crop, flip, jitter, None if resized_crop is None else tuple(resized_crop))
    return ImageData(pixels, rotations, augmentation, load, within)


@dataclass(frozen=True)
class ImageFiles:
    """A function that returns the decoded images and the split: from the cache, or from the files at `root`."""

    root: str | None
    csv: str | None
    downloads: tuple[Download, ...]
    split: SplitSettings
    pixels: Pixels
    on_corrupt: str
    benchmark: str | None
    train_classes: int | None
    classes: str = "auto"
    name: str | None = None  # of a data set of torchvision
    download: bool = False

    def __call__(self, verify: bool) -> Source:
        path = self._locate()
        decoding = [
            self.csv,
            *self.pixels.shape,
            self.pixels.resize,
            self.pixels.fit,
            self.on_corrupt,
            self.classes,
            self.pixels.depth,
            *([self.name] if self.name else []),
        ]
        key = f"{fingerprint(path)} {decoding}"
        cached = cache_images(
            self.benchmark or self.name or "folder", key, lambda file: self._decode(path, file), verify, path
        )
        names, given = cached.table.names, cached.notes["given"]
        if self.benchmark and self.split.split == "auto" and choose_split(names, given, self.benchmark) == "ratio":
            others = f"has no split, and its classes are not those of {self.benchmark}"
            raise SettingError("root", path, f"{others}; for other classes use data=folder")
        split, splits = split_classes(names, given, self.split, complete=False, benchmark=self.benchmark)
        limited = limit_training_classes(splits, self.train_classes, self.split.split_seed)
        notes = {k: cached.notes[k] for k in ("layout", "form", "passed_over", "passed_over_first", "other_files")}
        notes["images"] = int(cached.table.counts.sum())
        notes["skipped"] = len(cached.notes["skipped"])
        flat = cached.notes["flat"]
        if len(flat) == notes["images"]:
            nothing = f"every image is of one colour, as {flat[0]}; nothing can be learned from them"
            raise SettingError("root", path, f"{nothing} (data.depth says how many of 16 bits are in use)")
        notes |= {"flat": len(flat), "flat_first": flat[:NAMED]}
        notes |= {k: cached.notes[k] for k in ("depth", "largest") if k in cached.notes}
        if self.benchmark and split != BENCHMARKS[self.benchmark].split:
            notes["caveat"] = describe_difference(self.benchmark, names, splits, cached.notes["layout"])
        notes |= {} if self.train_classes is None else {"train_classes": self.train_classes}
        columns, uneven = cached.notes["columns"], cached.notes["uneven"]
        return Source(cached.table, limited, split, notes, cached.path, columns, uneven)

    def _locate(self) -> Path:
        """The folder or archive, after downloading its files if data.urls lists any."""
        root = self.root or (os.environ.get("METARUN_DATA") if self.benchmark else None)
        if root:
            folder = expand_path(root)
        else:  # downloads without a root: other files have another folder
            if not self.downloads:
                raise SettingError("root", root, f"set it to the folder or archive of the images. {self._advice}")
            file, checksum, _ = self.downloads[0]
            name = f"{file.partition('.')[0]}-{checksum.partition(':')[2][:8]}"
            folder = cache_folder() / "data" / name
        if self.downloads:
            fetch(self.downloads, folder)
        if self.name and self.download:
            folder.mkdir(parents=True, exist_ok=True)
            open_parts(self.name, folder, download=True)
        subfolders = [folder / name for name in (BENCHMARKS[self.benchmark].folders if self.benchmark else ())]
        path = next((p for p in subfolders if p.is_dir()), folder)
        require(path.exists(), "root", folder, f"there is no such folder or archive. {self._advice}")
        return path

    def _decode(self, path: Path, file: BinaryIO) -> DecodedImages:
        layout, others, read = self._find_layout(path)
        try:
            decoded = write_images(file, layout.entries, read, self.pixels, self.on_corrupt == "skip")
        except UnreadableImage as error:
            raise SettingError("root", path, f"{error}; data.on_corrupt=skip leaves such images out") from error
        given = {entry.label: entry.split for entry in layout.entries}
        notes: dict[str, Any] = {"layout": layout.name, "form": layout.form, "given": given, "other_files": others}
        columns, uneven = class_columns(layout.entries)
        notes |= {"columns": columns, "uneven": uneven}
        notes |= {"passed_over": len(layout.passed_over), "passed_over_first": layout.passed_over[:NAMED]}
        return decoded._replace(notes=decoded.notes | notes)

    def _find_layout(self, path: Path) -> tuple[Layout, dict[str, int], Read]:
        """The layout of the files, the number of files with other endings than those of images, and a function that
        reads its entries. The files may be in one archive in a folder without other data."""
        if self.name:
            joined, read = read_torchvision(self.name, path)
            return joined, {}, read
        try:
            files = open_files(path)
            published = BENCHMARKS[self.benchmark].classes if self.benchmark else None
            arrays = read_arrays(files, published)
            archives = [name for name in files.names if is_archive(Path(name))]
            images = [name for name in files.names if name.lower().endswith(IMAGES)]
            if path.is_dir() and len(archives) == 1 and not images and arrays is None:
                files = open_files(path / archives[0])
                arrays = read_arrays(files, published)
            if arrays is not None:
                return arrays[0], {}, arrays[1]
            layout = recognise(files, self.csv, self.classes, joined=self.benchmark is not None)
        except SettingError:
            raise
        except UserError as error:
            raise SettingError("root", path, str(error)) from error
        if layout is None:
            raise SettingError("root", path, f"has none of the supported layouts. {self._advice}")
        others = Counter(PurePosixPath(n).suffix.lower() for n in files.names if not n.lower().endswith(IMAGES))
        known = dict(others.most_common(NAMED))
        return layout, known, lambda entries: files.read(entry.name for entry in entries)

    @property
    def _advice(self) -> str:
        if self.name:
            return f"torchvision's {self.name} is looked for below it; data.download=true downloads it there"
        return (f"{BENCHMARKS[self.benchmark].source}. " if self.benchmark else "") + f"Supported layouts: {LAYOUTS}"


def describe_difference(benchmark: str, names: Sequence[str], splits: Mapping[Split, Index], layout: str) -> str:
    """Why results on these classes are not those of the published split of the benchmark."""
    published = BENCHMARKS[benchmark].classes
    sizes = all(len(splits[split]) == len(published[split]) for split in published)
    known = {name for part in published.values() for name in part}
    if layout == "pickles" and sizes and known.isdisjoint(names):
        return f"perhaps not the published {benchmark}: as many classes, under other names than in the published lists"
    what = "in another split" if known == {*names} else "of other classes"
    return f"not the published {benchmark}: images {what}, results cannot be compared with papers"


class Examples(NamedTuple):
    """Labelled images, shot by shot: the first of every class, then the second of every class that has one."""

    classes: tuple[str, ...]
    x: Tensor  # [S, C, H, W], inputs of a network
    y: Tensor  # [S], indices of classes
    shots: tuple[int, int]  # the fewest and the most images of a class


class Pictures(NamedTuple):
    """Unlabelled images."""

    files: tuple[str, ...]  # names below the folder
    x: Tensor  # [M, C, H, W]
    unreadable: tuple[str, ...]  # names of the files that are no images


def read_examples(path: Path, pixels: Pixels) -> Examples:
    """Read a folder or archive with a folder of images per class."""
    require(path.exists(), "predict.support", path, "there is no such file or folder")
    try:
        files = open_files(path)
        layout = recognise(files)
    except UserError as error:
        raise UserError(f"predict.support={path}: {error}") from error
    if layout is None:
        raise SettingError("predict.support", path, "must contain a folder of images for each of two classes or more")
    classes = tuple(dict.fromkeys(entry.label for entry in layout.entries))
    by_class = groupby(layout.entries, key=lambda entry: entry.label)
    rows = sorted((shot, entry.label, entry.name) for _, group in by_class for shot, entry in enumerate(group))
    y = torch.tensor([classes.index(label) for _, label, _ in rows])
    counts = y.bincount()
    x = _read_inputs([name for _, _, name in rows], files, pixels, skip=False).x
    return Examples(classes, x, y, (int(counts.min()), int(counts.max())))


def read_pictures(path: Path, pixels: Pixels) -> Pictures:
    """Read one image, or all below a folder or in an archive. Raise `UserError` if none of them can be read."""
    require(path.exists(), "predict.query", path, "there is no such file or folder")
    if path.is_file() and not is_archive(path):
        files = open_files(path.parent)
        names = [path.name]
    else:
        files = open_files(path)
        names = [name for name in files.names if name.lower().endswith(IMAGES)]
    if not names:
        raise SettingError("predict.query", path, f"contains no image; supported endings: {', '.join(IMAGES)}")
    return _read_inputs(names, files, pixels, skip=True)


def _read_inputs(names: Sequence[str], files: Files, pixels: Pixels, skip: bool) -> Pictures:
    """Decode images. Raise `UserError` for a file that cannot be read, or with `skip` where none can be."""
    readable, images, unreadable = [], [], []
    for name, content in zip(names, files.read(names), strict=True):
        try:
            images.append(pixels.decode(content))
            readable.append(name)
        except CorruptImage as error:
            unreadable.append(name)
            if not skip or len(unreadable) == len(names):
                raise UserError(f"{files.path / name}: is not a readable image ({error})") from error
    x = pixels.to_inputs(torch.from_numpy(np.stack(images)))
    return Pictures(tuple(readable), x, tuple(unreadable))
