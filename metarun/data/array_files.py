"""Files that hold arrays of images, as a layout.

NAME{train,val,test}.pkl, .pickle or .npz
    A file for each split. Images are `image_data`, `data`, `images` or `features`, uint8 [n, H, W, C]; classes are
    `class_dict`, class -> rows, or `labels`, `label` or `targets`, [n]. miniImageNet, CIFAR-FS and FC100 are passed on
    in this way. Beside image files only mini-imagenet-cache-{train,val,test}.pkl are looked at.
{train,val,test}_images_png.pkl
    tieredImageNet: a list of PNG files; their labels are in {train,val,test}_labels.pkl.
train, test and meta in one folder
    CIFAR-100 (cifar-100-python): `data`, uint8 [n, 3 * 32 * 32], `fine_labels`, `filenames`; meta names the classes.

Images of CIFAR-100 are ordered by their file names, as those of class folders are; other files have no names, and
their images keep their order.
"""

from __future__ import annotations

import io
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import index
from typing import Any, NamedTuple, TypeVar

import numpy as np

from metarun.compute.random import SPLITS
from metarun.data.benchmarks import Lists
from metarun.data.files import Files
from metarun.data.image_list import Entry
from metarun.data.layouts import IMAGES as ENDINGS
from metarun.data.layouts import Layout, make_layout
from metarun.data.npy import read_npz
from metarun.data.unpickling import LARGEST, as_array, unpickle
from metarun.errors import UserError, one_line
from metarun.types import Split

SPLIT_FILE = re.compile(r"(?P<name>(?:.*[/_-])?)(?P<split>train|val|test)(?P<png>_images_png)?\.(?:pkl|pickle|npz)")
IMAGES = ("image_data", "data", "images", "features")
LABELS = ("labels", "label", "targets", "label_specific")
CIFAR = ("train", "test", "meta")
PNG = "_images_png.pkl"
SIDE = 32  # pixels of CIFAR-100

T = TypeVar("T")
Images = np.ndarray | list[bytes]  # uint8 [n, H, W, C], or files
Read = Callable[[Iterable[Entry]], Iterator[Any]]


class Rows(NamedTuple):
    """The images of one file."""

    name: str  # unique among the files
    split: Split | None
    images: Images
    labels: Sequence[tuple[str, int]]  # pairs of a class and a row
    names: Sequence[str] | None = None  # of the images


def read_arrays(files: Files, published: Lists | None = None) -> tuple[Layout, Read] | None:
    """The arrays as a layout and a function that reads its entries; None if the files include none of these. Numbers in
    place of class names are those of the sorted names of `published`, if they make up its split."""
    parts, form = _read_splits(files, published)
    if parts:
        return _make_layout("pickles", parts, form)
    parts, form = _read_cifar(files)
    return _make_layout("CIFAR-100", parts, form) if parts else None


def _make_layout(layout: str, parts: Sequence[Rows], form: str) -> tuple[Layout, Read]:
    places: dict[str, tuple[Images, int]] = {}
    entries = []
    for part in parts:
        for label, row in part.labels:
            name = f"{part.name}/{row:08d}" if part.names is None else f"{part.name}/{label}/{part.names[row]}"
            places[name] = part.images, row
            entries.append(Entry(label, name, part.split))

    def read(wanted: Iterable[Entry]) -> Iterator[Any]:
        for images, row in (places[entry.name] for entry in wanted):
            yield images[row]

    return make_layout(layout, entries, form=form), read


def _read_splits(files: Files, published: Lists | None) -> tuple[list[Rows], str]:
    """The files of those splits that are there, of the name that has most of them."""
    alone = not any(name.lower().endswith(ENDINGS) for name in files.names)
    found: dict[tuple[str, str | None], dict[str, str]] = defaultdict(dict)
    for name in files.names:
        match = SPLIT_FILE.fullmatch(name)
        if match and (alone or match["name"].endswith("mini-imagenet-cache-")):
            found[match["name"], match["png"]].setdefault(match["split"], name)
    names = max(found.values(), key=len, default={})
    parts, kinds = [], set()
    for split in SPLITS:
        if split in names:
            kind, images, labels = _load_split(files, names[split])
            parts.append(Rows(split, split, images, labels))
            kinds.add(kind)
    form = f"{', '.join(sorted(kinds))} of {', '.join(names[split] for split in SPLITS if split in names)}"
    return _name_classes(parts, published), form


def _load_split(files: Files, file: str) -> tuple[str, Images, list[tuple[str, int]]]:
    """Return how the classes are stored, the images of one file, and its pairs of a class and a row."""
    where = files.path / file

    def take(stored: Mapping[str, Any]) -> tuple[str, Images, list[tuple[str, int]]]:
        key = next((key for key in IMAGES if key in stored), IMAGES[0])
        images: Images = []
        if file.endswith(PNG):
            images = [as_array(image).tobytes() for image in stored[key]]
        else:
            images = as_array(stored[key])
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
                raise UserError(f"{where}: {key} is {images.dtype} {list(images.shape)}, not uint8 [n, H, W, 3]")
        kind = next((kind for kind in LABELS if kind in stored), "class_dict")
        labels = _take_labels(stored, kind)
        beyond = [row for _, row in labels if not 0 <= row < len(images)]
        if beyond:
            raise UserError(f"{where}: {kind} names row {beyond[0]}, but {key} has {len(images)} rows")
        return kind, images, labels

    names = [file, file.replace(PNG, "_labels.pkl")] if file.endswith(PNG) else [file]
    return _load(files, names, take)


def _take_labels(stored: Mapping[str, Any], kind: str) -> list[tuple[str, int]]:
    if kind == "class_dict":
        rows_of = {_text(label): as_array(rows).tolist() for label, rows in stored[kind].items()}
        return [(label, index(row)) for label, rows in rows_of.items() for row in rows]
    called = [_text(name) for name in stored.get("label_specific_str", ())]
    numbers = map(index, as_array(stored[kind]).tolist())
    return [(called[number] if called else str(number), row) for row, number in enumerate(numbers)]


def _name_classes(parts: list[Rows], published: Lists | None) -> list[Rows]:
    """Replace numbers in place of class names: by names if that makes the published split, or else by SPLIT/NUMBER,
    since the numbers of each file may begin anew."""
    numbers = {part.split: {label for label, _ in part.labels} for part in parts}
    if not all(label.isdecimal() for labels in numbers.values() for label in labels):
        return parts
    classes = sorted(name for names in (published or {}).values() for name in names)
    called = {str(number): name for number, name in enumerate(classes)}
    if published and all({called.get(n) for n in numbers[s]} == {*published[s]} for s in numbers if s):
        return [part._replace(labels=[(called[label], row) for label, row in part.labels]) for part in parts]
    return [part._replace(labels=[(f"{part.split}/{label:0>4}", row) for label, row in part.labels]) for part in parts]


def _read_cifar(files: Files) -> tuple[list[Rows], str]:
    """The files train and test of CIFAR-100, both without a split of the classes."""
    folders = {posixpath.dirname(name) for name in files.names if posixpath.basename(name) == "meta"}
    folder = next((f for f in sorted(folders) if {posixpath.join(f, n) for n in CIFAR} <= {*files.names}), None)
    if folder is None:
        return [], ""
    names = [posixpath.join(folder, name) for name in CIFAR]
    classes = _load(files, names[2:], lambda meta: [_text(name) for name in meta["fine_label_names"]])

    def take(stored: Mapping[str, Any]) -> tuple[np.ndarray, list[tuple[str, int]], list[str]]:
        labels = [(classes[index(k)], row) for row, k in enumerate(as_array(stored["fine_labels"]).tolist())]
        images = as_array(stored["data"]).reshape(len(labels), 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        if images.dtype != np.uint8:
            raise ValueError(f"data is {images.dtype}, not uint8")
        files_of = [posixpath.basename(_text(name)) for name in stored["filenames"]]
        if len(files_of) != len(labels):
            raise ValueError(f"{len(files_of)} filenames for {len(labels)} images")
        return images, labels, files_of

    parts = [Rows(part, None, *_load(files, [name], take)) for part, name in zip(CIFAR, names[:2], strict=False)]
    return parts, f"fine_labels of {', '.join(names[:2])}"


def _load(files: Files, names: Sequence[str], take: Callable[[Mapping[str, Any]], T]) -> T:
    """What `take` makes of the values of all these files. Raise `UserError` if that fails."""
    stored: dict[str, Any] = {}
    for name in names:
        try:
            content = next(files.read([name], LARGEST))
            found = read_npz(io.BytesIO(content), LARGEST) if name.endswith(".npz") else unpickle(content)
            stored |= {"images": found} if name.endswith(PNG) else {_text(k): v for k, v in found.items()}
        except Exception as error:  # a damaged pickle can raise anything
            raise _unreadable(files, name, error) from error
    try:
        return take(stored)
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(files, names[-1], error) from error


def _unreadable(files: Files, name: str, error: Exception) -> UserError:
    kind = "npz file" if name.endswith(".npz") else "pickle"
    return UserError(
        f"{files.path / name}: is not a readable {kind} of images ({type(error).__name__}: {one_line(error)})"
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
