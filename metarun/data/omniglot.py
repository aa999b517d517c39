"""Omniglot (Lake, Salakhutdinov, Tenenbaum 2015): 1623 characters of 50 alphabets, 20 drawings each, ink = 1.

Splits:
    vinyals     by character, 1028 / 172 / 423: whole alphabets but for Gurmukhi, as Vinyals et al. 2016 and ProtoNet
    random1200  a seeded shuffle of the characters, 1100 / 100 / 423, as MAML's code (its paper: 1200 = train + val)
    background  Lake's own: the 30 background alphabets (the last 5 by name for validation), the 20 evaluation alphabets
Rotations by 90 degrees: `classes` makes four classes of every character, in all splits (ProtoNet); `task` turns each
class of an episode at random, so that two rotations of a character never meet (MAML); `train` makes four classes of
every training character and leaves the others upright (Reptile); `none`.
The drawings are 105x105 pixels of one bit. `resize=lanczos` and `area` give greys, `nearest` (in most published code)
does not.

On disk Omniglot has two parts, as extracted folders or as archives. They are searched in the usual subfolders of the
root, or downloaded.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from metarun.compute.random import SPLITS, choose, random_bits
from metarun.data.augment import Augmentation
from metarun.data.cache import DecodedImages, cache_images
from metarun.data.decoding import Read, UnreadableImage, write_images
from metarun.data.fetch import Download, fetch, parse_downloads
from metarun.data.files import expand_path, fingerprint, open_files
from metarun.data.image_list import Entry
from metarun.data.images import ImageData, Index, Source
from metarun.data.pixels import Pixels
from metarun.data.splits import limit_training_classes
from metarun.errors import UserError, require
from metarun.storage.run_folder import cache_folder
from metarun.types import Split

SPLIT_NAMES = ("vinyals", "random1200", "background")
PARTS = ("images_background", "images_evaluation")
SUBFOLDERS = ("", "omniglot", "omniglot-py")  # where people keep the parts; the last is torchvision's
DRAWING = re.compile(r"(?:^|/)images_(?:background|evaluation)/[^/]+/character\d+/\d+_\d+\.png$")
COUNT = 1623 * 20

VAL_ALPHABETS = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
TEST_ALPHABETS = (
    *("Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)", "Oriya"),
    *("Sylheti", "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG"),
)
TEST_CHARACTERS = tuple(f"Gurmukhi/character{i}" for i in range(42, 46))  # the one alphabet in both train and test


def omniglot(
    root: str | None,
    download: bool | None,
    urls: list[Any],
    split: str,
    split_seed: int,
    rotations: str,
    image_size: int,
    resize: str,
    train_classes: int | None = None,
    within: str | None = None,
    channels: int = 1,
    normalize: str = "none",
) -> ImageData:
    """The data set of these settings, which conf/data/omniglot.yaml explains."""
    require(split in SPLIT_NAMES, "split", split, "choices: " + ", ".join(SPLIT_NAMES))
    require(0 <= split_seed < 2**63, "split_seed", split_seed, "must be at least 0")
    require(within in (None, "group"), "within", within, "choices: null, group (an alphabet)")
    require(8 <= image_size <= 105, "image_size", image_size, "must be 8 to 105")
    pixels = Pixels(image_size, channels, resize, normalize=normalize, ink=True)
    downloads = parse_downloads(urls)

    def load(verify: bool) -> Source:
        parts = find_parts(root, download, downloads)
        key = f"{' '.join(fingerprint(p) for p in parts)} {image_size} {resize}{' colour' if channels == 3 else ''}"

        def decode(file: BinaryIO) -> DecodedImages:
            entries, read = open_drawings(parts)
            try:
                return write_images(file, entries, read, pixels)
            except UnreadableImage as error:
                raise UserError(f"data.root={parts[0].parent}: {error}") from error

        cached = cache_images("omniglot", key, decode, verify, parts[0].parent)
        splits = split_characters(cached.table.names, split, split_seed)
        splits = limit_training_classes(splits, train_classes, split_seed)
        notes = {} if train_classes is None else {"train_classes": train_classes}
        return Source(cached.table, splits, split, notes, cached.path)

    return ImageData(pixels, rotations, Augmentation(), load, within)


def split_characters(names: tuple[str, ...], split: str, seed: int) -> dict[Split, Index]:
    """Names PART/ALPHABET/CHARACTER of all characters -> the indices of those of each split."""
    if split == "random1200":
        order = choose(random_bits("train", seed, 0, range(1), len(names))[0], len(names))
        return {"train": order[:1100], "val": order[1100:1200], "test": order[1200:]}
    background = sorted({name.split("/")[1] for name in names if name.startswith("images_background/")})

    def assign(name: str) -> str:
        part, alphabet, character = name.split("/")
        if split == "background":
            if part == "images_evaluation":
                return "test"
            return "val" if alphabet in background[-5:] else "train"
        if alphabet in TEST_ALPHABETS or f"{alphabet}/{character}" in TEST_CHARACTERS:
            return "test"
        return "val" if alphabet in VAL_ALPHABETS else "train"

    assigned = np.array([assign(name) for name in names])
    return {s: np.flatnonzero(assigned == s) for s in SPLITS}


def find_parts(root: str | None, download: bool | None, downloads: Sequence[Download]) -> list[Path]:
    """Find both parts below data.root, METARUN_DATA or metarun's own data folder, or download them to it.

    `download` None: unless the root is no folder, which may be a typing error.
    """
    folder = expand_path(str(root or os.environ.get("METARUN_DATA") or cache_folder() / "data"))
    found, why, cause = _search(folder), "downloading is off", None
    if download is None:
        download, why = not root or folder.exists(), "there is no such folder"
    if found is None and download:
        try:
            fetch(downloads, folder / "omniglot")
            found, why = _search(folder), "data.urls does not list both archives"
        except UserError as error:
            why, cause = f"downloading failed: {error}", error
    if found is None:
        raise UserError(
            f"data.root={folder}: no Omniglot below it ({why}); supply it in one of three ways: "
            "data.root=DIR (or METARUN_DATA=DIR) with the folders images_background and images_evaluation; "
            "the same with the two archives images_background.zip and images_evaluation.zip; "
            "or data.download=true, which downloads it there"
        ) from cause
    return found


def open_drawings(parts: Sequence[Path]) -> tuple[list[Entry], Read]:
    """The drawings of both parts by character and file name, and a function that reads their files."""
    opened = {path.name.removesuffix(".zip"): open_files(path) for path in parts}
    stored = {
        match[0].lstrip("/"): (part, name)
        for part, files in opened.items()
        for name in files.names
        if (match := DRAWING.search(f"{part}/{name}"))
    }
    found = [Entry(name.rpartition("/")[0], name, None) for name in stored]
    if len(found) != COUNT:
        held = f"holds {len(found)} Omniglot drawings, not {COUNT}; the copy is incomplete"
        raise UserError(f"data.root={parts[0].parent}: {held}")

    def read(entries: Iterable[Entry]) -> Iterator[bytes]:
        for part, group in groupby((stored[entry.name] for entry in entries), itemgetter(0)):
            yield from opened[part].read([name for _, name in group])

    return sorted(found, key=lambda entry: (entry.label, entry.name)), read


def _search(folder: Path) -> list[Path] | None:
    """Both parts as sound archives or as folders, in the folder or in one of its usual subfolders."""
    for subfolder in (folder / name for name in SUBFOLDERS):
        folders = [subfolder / part for part in PARTS]
        archives = [subfolder / f"{part}.zip" for part in PARTS]
        if all(zipfile.is_zipfile(path) for path in archives):
            return archives
        if all(path.is_dir() for path in folders):
            return folders
        if all(path.is_file() for path in archives):
            return archives  # damaged: reading them raises the error
    return None
