"""A data set of ten classes in every layout, of noise: an image in an episode tells which class and file it is."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from helpers.image_files import Contents, png
from metarun.data.folder import image_folder
from metarun.data.images import ImageData, members_sha256
from metarun.types import EpisodeSpec, Split, Task

CONF = Path(__file__).resolve().parents[2] / "conf/data"
SIDE = 12
PARTS: dict[Split, tuple[str, ...]] = {
    "train": ("yak", "Ant", "ox", "fox 2"),
    "val": ("bee", "cat", "zebra ü"),
    "test": ("dog", "eel", "gnu"),
}
SPLIT_OF = {label: split for split, labels in PARTS.items() for label in labels}
SPEC = EpisodeSpec(ways=3, shots=2, queries=3)
EPISODE = ("ways", "shots", "queries", "test_queries")

Settings = dict[str, Any]


def picture(seed: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


# Class -> file name -> pixels; names are unique among all classes, and one class has an image more.
PICTURES = {
    label: {f"{label}_{i}.png": picture(10 * c + i) for i in range(6 if label == "ox" else 5)}
    for c, label in enumerate(sorted(SPLIT_OF))
}
FILES = {label: {name: png(pixels) for name, pixels in images.items()} for label, images in PICTURES.items()}
SHA256 = members_sha256({split: list(labels) for split, labels in PARTS.items()})


def each(name: Callable[[str, str], str]) -> dict[str, bytes]:
    return {name(label, file): content for label, files in FILES.items() for file, content in files.items()}


def table(labels: tuple[str, ...], split: bool = False) -> bytes:
    rows = [f"{name},{label}{f',{SPLIT_OF[label]}' if split else ''}" for label in labels for name in FILES[label]]
    return "\n".join([f"filename,label{',split' if split else ''}", *reversed(rows), ""]).encode()


def pickles() -> dict[str, bytes]:
    found = {}
    for split, labels in PARTS.items():
        rows = [(label, pixels) for label in labels for pixels in PICTURES[label].values()]
        classes = {label: [i for i, (one, _) in enumerate(rows) if one == label] for label in labels}
        arrays = {"image_data": np.stack([pixels for _, pixels in rows]), "class_dict": classes}
        found[f"mini-imagenet-cache-{split}.pkl"] = pickle.dumps(arrays, 2)
    return found


def write_split(folder: Path) -> Path:
    (folder / "split.json").write_text(json.dumps({split: list(labels)[::-1] for split, labels in PARTS.items()}))
    return folder / "split.json"


LAYOUTS: dict[str, tuple[Contents, Settings]] = {
    "csv": (each(lambda c, n: f"photos/{n}") | {"table.csv": table(tuple(SPLIT_OF), True)}, {"csv": "table.csv"}),
    "split csvs": (each(lambda c, n: f"images/{n}") | {f"{s}.csv": table(ls) for s, ls in PARTS.items()}, {}),
    "split folders": (each(lambda c, n: f"{SPLIT_OF[c]}/{c}/{n}"), {}),
    "pickles": (pickles(), {}),
    "class folders": (each(lambda c, n: f"{c}/{n}"), {"split": "LISTED"}),
}
FOLDERS = LAYOUTS["split folders"][0]
CLASSES = LAYOUTS["class folders"][0]


def defaults(name: str) -> Settings:
    """The settings of the data set in conf/data, those of the file that it is based on included."""
    content = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    data: Settings = {}
    for base in content.get("defaults", ()):
        data |= defaults(base) if isinstance(base, str) and base != "_self_" else {}
    return data | {key: value for key, value in content["data"].items() if key not in ("_target_", *EPISODE)}


def dataset(root: Path | str | None = None, data: str = "folder", **settings: Any) -> ImageData:
    """As conf/data has it, but for the settings that are given."""
    location = {"root": None if root is None else str(root), "image_size": SIDE}
    return image_folder(**defaults(data) | location | settings)


def draw(data: ImageData, split: Split = "train", spec: EpisodeSpec = SPEC, tasks: int = 4) -> Task:
    return data.episodes(split, 0, 5, range(tasks), spec)


def digest(data: ImageData) -> dict[str, str]:
    """The episodes of each split, bit for bit."""
    found: dict[str, str] = {}
    for split in PARTS:
        tensors = [t.contiguous().numpy().tobytes() for batch in draw(data, split) for t in batch]
        found[split] = hashlib.sha256(b"".join(tensors)).hexdigest()
    return found


KNOWN = {pixels.tobytes(): (label, name) for label, images in PICTURES.items() for name, pixels in images.items()}


def recognise_images(x: torch.Tensor) -> list[tuple[str, str]]:
    """Class and file of images [..., 3, 12, 12] in [0, 1]."""
    pixels = (x * 255).round().to(torch.uint8).flatten(0, -4).permute(0, 2, 3, 1)
    return [KNOWN[image.numpy().tobytes()] for image in pixels]


def mini(root: Path | None, **settings: Any) -> ImageData:
    return dataset(root, "miniimagenet", **{"image_size": 8} | settings)
