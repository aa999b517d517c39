"""Omniglot on disk: two parts as extracted folders or as archives, looked for where people keep them, or downloaded."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from metarun.data.fetch import Download, fetch
from metarun.data.files import Files, open_files, user_path
from metarun.data.layouts import Entry
from metarun.errors import UserError
from metarun.storage.cache_folder import cache_folder

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
