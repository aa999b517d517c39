"""Omniglot on disk: as extracted folders, as the two archives, or fetched by torchvision; and its decoding.

Archives are read in place, so nothing is extracted and no name in them can reach another folder.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from metarun.data.cache import cache_folder
from metarun.data.images import ImageTable
from metarun.errors import UserError
from metarun.progress import track

PARTS = ("images_background", "images_evaluation")
DRAWING = re.compile(r"(?:^|/)(images_(?:background|evaluation)/[^/]+/character\d+)/\d+_\d+\.png$")
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)  # NotImplementedError is a RuntimeError
LARGEST = 1 << 20  # bytes of one drawing's file; the real ones have about 300
RESIZE = {"lanczos": Image.Resampling.LANCZOS, "area": Image.Resampling.BOX, "nearest": Image.Resampling.NEAREST}


class Drawings(NamedTuple):
    """Where the drawings are: `read` yields (name, PNG bytes) sorted by name, `total` of them."""

    fingerprint: str
    total: int
    read: Callable[[], Iterator[tuple[str, bytes]]]


def find_drawings(root: str | None, download: bool) -> Drawings:
    """Look below data.root, METARUN_DATA or metarun's own data folder; fetch them there if that is allowed."""
    folder = Path(root or os.environ.get("METARUN_DATA") or cache_folder() / "data").expanduser()
    found = _look(folder, download)
    if found is None and download:
        _fetch(folder)
        found = _look(folder)
    if found is None:
        raise UserError(_missing(folder, "downloading is off"))
    return found


def decode(drawings: Drawings, size: int, resize: str) -> ImageTable:
    """All drawings as one table [n, 1, size, size] sorted by character, ink = 255."""
    images = torch.empty(drawings.total, 1, size, size, dtype=torch.uint8)
    names: list[str] = []
    counts: list[int] = []
    for i, (name, png) in enumerate(track(drawings.read(), drawings.total, "decoding Omniglot")):
        character = DRAWING.findall(name)[0]
        if not names or names[-1] != character:
            names.append(character)
            counts.append(0)
        counts[-1] += 1
        images[i, 0] = torch.from_numpy(_pixels(name, png, size, resize))
    counts_C = np.array(counts, dtype=np.intp)
    return ImageTable(images, tuple(names), np.cumsum(counts_C) - counts_C, counts_C)


def _pixels(name: str, png: bytes, size: int, resize: str) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(png), formats=["PNG"]).convert("L").resize((size, size), RESIZE[resize])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"data=omniglot: {name} is not a readable image ({error})") from error
    return 255 - np.asarray(image)


def _look(folder: Path, download: bool = False) -> Drawings | None:
    """Both parts as folders or archives, in the folder itself or in the places where people keep them."""
    for place in (folder, folder / "omniglot", folder / "omniglot-py"):
        archives = [place / f"{part}.zip" for part in PARTS]
        if all(zipfile.is_zipfile(a) for a in archives):
            return _from_archives(archives)
        if all((place / part).is_dir() for part in PARTS):
            return _from_folders([place / part for part in PARTS])
        if all(a.is_file() for a in archives) and not download:
            return _from_archives(archives)  # which says what is wrong with them
    return None


def _from_folders(folders: list[Path]) -> Drawings:
    files = sorted((f for folder in folders for f in folder.rglob("*.png")), key=str)
    files = [f for f in files if DRAWING.search(f.as_posix())]
    stats = [f"{f} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files]
    _check_count(len(files), folders[0].parent)

    def read() -> Iterator[tuple[str, bytes]]:
        for file in files:
            yield file.as_posix(), file.read_bytes()

    return Drawings(_sha256(stats), len(files), read)


def _from_archives(paths: list[Path]) -> Drawings:
    try:
        members = [(p, info) for p in paths for info in zipfile.ZipFile(p).infolist() if DRAWING.search(info.filename)]
    except (*DAMAGED, OSError) as error:
        raise UserError(f"data.root={paths[0].parent}: not two readable zip archives ({error})") from error
    members = sorted((m for m in members if m[1].file_size <= LARGEST), key=lambda m: m[1].filename)
    _check_count(len(members), paths[0].parent)

    def read() -> Iterator[tuple[str, bytes]]:
        archives = {p: zipfile.ZipFile(p) for p in paths}
        for path, info in members:
            try:
                yield info.filename, archives[path].read(info)
            except (*DAMAGED, OSError) as error:
                raise UserError(f"data=omniglot: {path} is damaged at {info.filename} ({error})") from error

    return Drawings(_sha256([f"{i.filename} {i.CRC}" for _, i in members]), len(members), read)


def _check_count(count: int, place: Path) -> None:
    if count != 1623 * 20:
        raise UserError(f"data.root={place}: holds {count} Omniglot drawings, not 32460; the copy is incomplete")


def _fetch(folder: Path) -> None:
    """Both archives by torchvision, which checks their sums and shows a progress bar."""
    from metarun.vision import load_torchvision

    try:
        for background in (True, False):
            load_torchvision().datasets.Omniglot(str(folder), background=background, download=True)
    except (OSError, RuntimeError, HTTPException) as error:  # no network, no disk, or a wrong checksum
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(_missing(folder, f"downloading failed: {reason}")) from error


def _missing(folder: Path, why: str) -> str:
    return (
        f"data=omniglot: no Omniglot below {folder} ({why}); supply it in one of three ways: "
        "data.root=DIR (or METARUN_DATA=DIR) with the folders images_background and images_evaluation; "
        "the same with the two archives images_background.zip and images_evaluation.zip; "
        "or data.download=true on a machine with internet access"
    )


def _sha256(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
