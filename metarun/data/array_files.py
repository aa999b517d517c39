"""Files that hold arrays of images, as a layout.

mini-imagenet-cache-{train,val,test}.pkl    miniImageNet: `image_data`, uint8 [n, H, W, 3], and `class_dict`, class ->
                                            row indices
train, test and meta in one folder          CIFAR-100 (cifar-100-python): `data`, uint8 [n, 3 * 32 * 32], `fine_labels`
                                            and `filenames`; the names of the classes are in meta

Images of CIFAR-100 are ordered by their file names, as those of class folders are; other files have no names, and
their images keep their order.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import index
from typing import Any, NamedTuple, TypeVar

import numpy as np

from metarun.compute.random import SPLITS
from metarun.data.files import Files
from metarun.data.image_list import Entry
from metarun.data.layouts import Layout, make_layout
from metarun.data.unpickling import LARGEST, as_array, unpickle
from metarun.errors import UserError, one_line
from metarun.types import Split

MINI = "mini-imagenet-cache-{}.pkl"
CIFAR = ("train", "test", "meta")
SIDE = 32  # pixels of CIFAR-100

T = TypeVar("T")
Read = Callable[[Iterable[Entry]], Iterator[np.ndarray]]


class Rows(NamedTuple):
    """The images of one file."""

    name: str  # unique among the files
    split: Split | None
    images: np.ndarray  # uint8 [n, H, W, C]
    labels: Sequence[tuple[str, int]]  # pairs of a class and a row
    names: Sequence[str] | None = None  # of the images


def read_arrays(files: Files) -> tuple[Layout, Read] | None:
    """The arrays as a layout and a function that reads its entries; None if the files include none of these."""
    for layout, find in (("pickles", _read_mini), ("CIFAR-100", _read_cifar)):
        parts, form = find(files)
        if parts:
            return _make_layout(layout, parts, form)
    return None


def _make_layout(layout: str, parts: Sequence[Rows], form: str) -> tuple[Layout, Read]:
    places: dict[str, tuple[np.ndarray, int]] = {}
    entries = []
    for part in parts:
        for label, row in part.labels:
            name = f"{part.name}/{row:08d}" if part.names is None else f"{part.name}/{label}/{part.names[row]}"
            places[name] = part.images, row
            entries.append(Entry(label, name, part.split))

    def read(wanted: Iterable[Entry]) -> Iterator[np.ndarray]:
        for images, row in (places[entry.name] for entry in wanted):
            yield images[row]

    return make_layout(layout, entries, form=form), read


def _read_mini(files: Files) -> tuple[list[Rows], str]:
    """The pickles of miniImageNet, of those splits that are there."""
    names = {split: next((n for n in files.names if n.endswith(MINI.format(split))), None) for split in SPLITS}
    parts = [Rows(split, split, *_load_mini(files, name)) for split, name in names.items() if name is not None]
    return parts, "class_dict of " + ", ".join(filter(None, names.values()))


def _load_mini(files: Files, file: str) -> tuple[np.ndarray, list[tuple[str, int]]]:
    """Return `image_data`, and the pairs of `class_dict`."""

    def take(stored: Any) -> tuple[np.ndarray, list[tuple[str, int]]]:
        labels = [(_text(k), index(row)) for k, rows in stored["class_dict"].items() for row in as_array(rows).tolist()]
        return as_array(stored["image_data"]), labels

    images, labels = _load(files, file, take)
    where = files.path / file
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(f"{where}: image_data is {images.dtype} {list(images.shape)}, not uint8 [n, H, W, 3]")
    beyond = [row for _, row in labels if not 0 <= row < len(images)]
    if beyond:
        raise UserError(f"{where}: class_dict names row {beyond[0]}, but image_data has {len(images)} rows")
    return images, labels


def _read_cifar(files: Files) -> tuple[list[Rows], str]:
    """The files train and test of CIFAR-100, both without a split of the classes."""
    folders = {posixpath.dirname(name) for name in files.names if posixpath.basename(name) == "meta"}
    folder = next((f for f in sorted(folders) if {posixpath.join(f, n) for n in CIFAR} <= {*files.names}), None)
    if folder is None:
        return [], ""
    classes = _load(files, posixpath.join(folder, "meta"), lambda m: [_text(n) for n in m["fine_label_names"]])
    parts = [_load_cifar(files, folder, name, classes) for name in ("train", "test")]
    return parts, "fine_labels of " + ", ".join(posixpath.join(folder, n) for n in ("train", "test"))


def _load_cifar(files: Files, folder: str, name: str, classes: Sequence[str]) -> Rows:
    def take(stored: Any) -> Rows:
        labels = [(classes[index(k)], row) for row, k in enumerate(as_array(stored["fine_labels"]).tolist())]
        images = as_array(stored["data"]).reshape(len(labels), 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        if images.dtype != np.uint8:
            raise ValueError(f"data is {images.dtype}, not uint8")
        names = [posixpath.basename(_text(file)) for file in stored["filenames"]]
        if len(names) != len(labels):
            raise ValueError(f"{len(names)} filenames for {len(labels)} images")
        return Rows(name, None, images, labels, names)

    return _load(files, posixpath.join(folder, name), take)


def _load(files: Files, file: str, take: Callable[[Any], T]) -> T:
    """What `take` makes of the value in a pickle. Raise `UserError` if that fails."""
    try:
        stored = unpickle(next(files.read([file], LARGEST)))
        return take({_text(key): value for key, value in stored.items()})
    except Exception as error:  # a damaged pickle can raise anything
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{files.path / file}: is not a readable pickle of images ({reason})") from error


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
