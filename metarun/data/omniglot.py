"""Omniglot (Lake, Salakhutdinov, Tenenbaum 2015): 1623 characters of 50 alphabets, 20 drawings each, ink = 1.

Splits:
    vinyals     by character, 1028 / 172 / 423: whole alphabets but for Gurmukhi, as Vinyals et al. 2016 and ProtoNet
    random1200  a seeded shuffle of the characters, 1100 / 100 / 423, as MAML's code (its paper: 1200 = train + val)
    background  Lake's own: the 30 background alphabets (the last 5 by name for validation), the 20 evaluation alphabets
Rotations by 90 degrees: `classes` makes four classes of every character, in all splits (ProtoNet); `task` turns each
class of an episode at random, so that two rotations of a character never meet (MAML); `train` makes four classes of
every training character and leaves the others upright (Reptile); `none`.
The drawings are 105x105 pixels of one bit. `resize=lanczos` and `area` give greys, `nearest` does not (what most
published code does).

Omniglot on disk: two parts as extracted folders or as archives, looked for where people keep them, or downloaded.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from metarun.compute.random import SPLITS, choose, random_bits
from metarun.data.augment import Augmentation
from metarun.data.cache import Decoded, cached_images
from metarun.data.decoding import Unreadable, write_images
from metarun.data.fetch import Download, as_downloads, fetch
from metarun.data.files import Files, fingerprint, open_files, user_path
from metarun.data.images import ImageData, Index, Source
from metarun.data.layouts import Entry
from metarun.data.pixels import Pixels
from metarun.data.splits import fewer_training_classes
from metarun.errors import UserError, require
from metarun.storage.cache_folder import cache_folder
from metarun.types import Split

KINDS = ("vinyals", "random1200", "background")

VAL_ALPHABETS = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
TEST_ALPHABETS = (
    *("Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)", "Oriya"),
    *("Sylheti", "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG"),
)
TEST_CHARACTERS = tuple(f"Gurmukhi/character{i}" for i in range(42, 46))  # the one alphabet in both train and test


def omniglot(
    root: str | None,
    download: bool,
    urls: list[Any],
    split: str,
    split_seed: int,
    rotations: str,
    image_size: int,
    resize: str,
    train_classes: int | None = None,
) -> ImageData:
    """The data set of these settings; conf/data/omniglot.yaml says what each means."""
    require(split in KINDS, "split", split, "choices: " + ", ".join(KINDS))
    require(0 <= split_seed < 2**63, "split_seed", split_seed, "must be at least 0")
    require(8 <= image_size <= 105, "image_size", image_size, "must be 8 to 105")
    pixels = Pixels(image_size, 1, resize, ink=True)
    downloads = as_downloads(urls)

    def load(verify: bool) -> Source:
        parts = find_parts(root, download, downloads)
        key = f"{' '.join(fingerprint(p) for p in parts)} {image_size} {resize}"

        def decode(file: BinaryIO) -> Decoded:
            drawings = open_drawings(parts)
            try:
                return write_images(file, drawings.entries, drawings.read, pixels)
            except Unreadable as error:
                raise UserError(f"data.root={parts[0].parent}: {error}") from error

        cached = cached_images("omniglot", key, decode, verify)
        splits = fewer_training_classes(characters(cached.table.names, split, split_seed), train_classes, split_seed)
        notes = {} if train_classes is None else {"train_classes": train_classes}
        return Source(cached.table, splits, split, notes, cached.path)

    return ImageData(pixels, rotations, Augmentation(), load)


def characters(names: tuple[str, ...], split: str, seed: int) -> dict[Split, Index]:
    """The characters of each part of the split, as numbers."""
    if split == "random1200":
        order = choose(random_bits("train", seed, 0, range(1), len(names))[0], len(names))
        return {"train": order[:1100], "val": order[1100:1200], "test": order[1200:]}
    part = _vinyals if split == "vinyals" else _lake(names)
    parts = np.array([part(name) for name in names])
    return {s: np.flatnonzero(parts == s) for s in SPLITS}


def _vinyals(name: str) -> str:
    alphabet = _alphabet(name)
    if alphabet in TEST_ALPHABETS or _character(name) in TEST_CHARACTERS:
        return "test"
    return "val" if alphabet in VAL_ALPHABETS else "train"


def _lake(names: tuple[str, ...]) -> Any:
    background = sorted({_alphabet(n) for n in names if n.startswith("images_background/")})
    held_out = background[-5:]

    def part(name: str) -> str:
        if name.startswith("images_evaluation/"):
            return "test"
        return "val" if _alphabet(name) in held_out else "train"

    return part


def _alphabet(name: str) -> str:
    return name.split("/")[1]


def _character(name: str) -> str:
    return name.split("/", 1)[1]


PARTS = ("images_background", "images_evaluation")
PLACES = ("", "omniglot", "omniglot-py")  # the last is torchvision's
DRAWING = re.compile(r"(?:^|/)(images_(?:background|evaluation)/[^/]+/character\d+)/\d+_\d+\.png$")
COUNT = 1623 * 20


def find_parts(root: str | None, download: bool, downloads: Sequence[Download]) -> list[Path]:
    """Both parts, below data.root, METARUN_DATA or metarun's own data folder; fetched there if that is allowed."""
    folder = user_path(str(root or os.environ.get("METARUN_DATA") or cache_folder() / "data"))
    found = _look(folder)
    if found is None and download:
        try:
            fetch(downloads, folder / "omniglot")
        except UserError as error:
            raise UserError(_missing(folder, f"downloading failed: {error}")) from error
        found = _look(folder)
    if found is None:
        why = "data.urls has not both archives" if download else "downloading is off"
        raise UserError(_missing(folder, why))
    return found


def open_drawings(parts: Sequence[Path]) -> Drawings:
    drawings = Drawings([open_files(part) for part in parts])
    if len(drawings.entries) != COUNT:
        held = f"holds {len(drawings.entries)} Omniglot drawings, not {COUNT}; the copy is incomplete"
        raise UserError(f"data.root={parts[0].parent}: {held}")
    return drawings


class Drawings:
    """The drawings of both parts: entries by character and file name, and how to read them."""

    def __init__(self, parts: Sequence[Files]) -> None:
        self.parts = {files.place.name.removesuffix(".zip"): files for files in parts}
        found = [
            Entry(match[1], f"{part}/{name}", None)
            for part, files in self.parts.items()
            for name in files.names
            if (match := DRAWING.search(f"{part}/{name}"))
        ]
        self.entries = sorted(found, key=lambda e: (e.label, e.name))

    def read(self, entries: Iterable[Entry]) -> Iterator[bytes]:
        """The drawings' files, the entries being in their order: one part after the other."""
        names: dict[str, list[str]] = {}
        for entry in entries:
            part, _, name = entry.name.partition("/")
            names.setdefault(part, []).append(name)
        for part, wanted in names.items():
            yield from self.parts[part].read(wanted)


def _look(folder: Path) -> list[Path] | None:
    """Both parts as sound archives or as folders, in the folder itself or in the places where people keep them."""
    for place in (folder / below for below in PLACES):
        for ending in (".zip", ""):
            parts = [place / f"{part}{ending}" for part in PARTS]
            if all(zipfile.is_zipfile(p) if ending else p.is_dir() for p in parts):
                return parts
        archives = [place / f"{part}.zip" for part in PARTS]
        if all(p.is_file() for p in archives):
            return archives  # reading them says what is wrong with them
    return None


def _missing(folder: Path, why: str) -> str:
    return (
        f"data.root: no Omniglot below {folder} ({why}); supply it in one of three ways: "
        "data.root=DIR (or METARUN_DATA=DIR) with the folders images_background and images_evaluation; "
        "the same with the two archives images_background.zip and images_evaluation.zip; "
        "or data.download=true on a machine with internet access"
    )
