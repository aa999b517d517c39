"""The classification data sets of torchvision, all official parts joined, as a layout.

torchvision's own class finds, verifies and downloads the files. Images of a class are ordered by part and by their
place in it. Where a set does not name its classes, they are numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarun.data.image_list import Entry
from metarun.data.layouts import Layout
from metarun.data.torchvision import load_torchvision
from metarun.errors import SettingError, one_line, require


def _parts(*splits: str) -> list[dict[str, Any]]:
    return [{"split": split} for split in splits]


_TRAIN_TEST: list[dict[str, Any]] = [{"train": True}, {"train": False}]
SETS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS"), _TRAIN_TEST),
    **{name: _parts("train", "val", "test") for name in ("DTD", "FGVCAircraft", "Flowers102")},
    **{name: _parts("train", "test") for name in ("Food101", "GTSRB", "STL10", "SVHN", "StanfordCars")},
    **{name: [{}] for name in ("Caltech101", "Caltech256", "EuroSAT", "SUN397")},
    "Country211": _parts("train", "valid", "test"),
    "EMNIST": [{"split": "balanced", **part} for part in _TRAIN_TEST],
    "OxfordIIITPet": _parts("trainval", "test"),
}
"""Name of the class in torchvision.datasets -> the arguments that make each of its parts."""

LABELS = ("targets", "labels", "_labels", "y")  # where torchvision's classes keep them, one for each image
NAMES = ("classes", "categories")


def open_parts(name: str, root: Path, download: bool) -> list[Any]:
    """The parts of the set below `root`. Raise `SettingError` if they are not there."""
    require(name in SETS, "name", name, "choices: " + ", ".join(sorted(SETS)))
    make = getattr(load_torchvision().datasets, name)
    try:
        return [make(root, download=download, **part) for part in SETS[name]]
    except ImportError as error:
        raise SettingError(
            "name", name, f"torchvision needs another package for this set ({one_line(error)})"
        ) from error
    except Exception as error:  # damaged files and broken connections raise many kinds
        reason = one_line(error).partition(". ")[0]  # then it advises an argument that is none of metarun's settings
        why = f"torchvision finds no {name} there ({reason}); data.download=true downloads it"
        if download:
            why = f"torchvision cannot download {name} there ({reason})"
        raise SettingError("root", root, why) from error


def read_torchvision(name: str, root: Path) -> tuple[Layout, Callable[[Iterable[Entry]], Iterator[NDArray[np.uint8]]]]:
    """The images of the set as a layout, and a function that reads its entries."""
    parts = open_parts(name, root, download=False)
    entries, places = [], {}
    for number, part in enumerate(parts):
        labels = _labels(part)
        called = next((list(getattr(part, key)) for key in NAMES if hasattr(part, key)), [])
        for row, label in enumerate(labels):
            file = f"{number}-{row:08d}"
            places[file] = part, row
            entries.append(Entry(str(called[label]) if called else f"{label:04d}", file, None))

    def read(wanted: Iterable[Entry]) -> Iterator[NDArray[np.uint8]]:
        for part, row in (places[entry.name] for entry in wanted):
            image = part[row][0]
            pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
            yield pixels.reshape(*pixels.shape[:2], -1)

    ordered = tuple(sorted(entries, key=lambda entry: (entry.label, entry.name)))  # letters may differ in case alone
    return Layout(f"torchvision's {name}", ordered, form=f"{len(parts)} parts joined"), read


def _labels(part: Any) -> list[int]:
    """The class number of each image; where the set has no list of these, of each image as it is read."""
    found = next((getattr(part, key) for key in LABELS if hasattr(part, key)), None)
    if found is None and hasattr(part, "_samples"):
        found = [label for _, label in part._samples]
    if found is None or len(found) != len(part):
        found = [part[row][1] for row in range(len(part))]
    return [int(label) for label in found]
