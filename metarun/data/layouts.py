"""Which file shows which class: the layouts in which people keep class-labelled images, told apart by names alone.

csv             one table `filename,label[,split]` that data.csv names
split csvs      train.csv, val.csv, test.csv (`filename,label`) and a folder images/: miniImageNet as Ravi published it
split folders   train/, val/, test/, each with a folder per class
class folders   a folder per class
All of it may lie below other folders. A class's images are ordered by file name, whatever the layout.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import PurePosixPath
from typing import NamedTuple

from metarun.compute.random import SPLITS
from metarun.data.files import Files
from metarun.errors import SettingError, UserError, one_line
from metarun.types import Split

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
COLUMNS = ("filename", "label", "split")


class Entry(NamedTuple):
    """One image: its class, its file, and the split that the layout gives it, if it does."""

    label: str
    name: str
    split: Split | None


class Layout(NamedTuple):
    name: str
    entries: tuple[Entry, ...]  # sorted by class, then by the file's own name


def recognise(files: Files, table: str | None = None) -> Layout | None:
    """The layout of the files, or None when it is none of these; `table` is the csv that data.csv names."""
    images = [name for name in files.names if name.lower().endswith(IMAGES)]
    if table is not None:
        return as_layout("csv", _rows_of_table(files, table, images))
    tables = _split_tables(files.names)
    if tables:
        rows = [Entry(e.label, e.name, split) for split, t in tables.items() for e in _rows_of_table(files, t, images)]
        return as_layout("split csvs", rows)
    depth = _common_depth(images)
    parts = [(name, PurePosixPath(name).parts[depth:]) for name in images]
    if _are_split_folders([p for _, p in parts]):
        deep = [(name, p) for name, p in parts if len(p) > 2]
        return as_layout("split folders", [Entry(p[1], name, SPLIT_FOLDERS[p[0].lower()]) for name, p in deep])
    entries = [Entry(p[0], name, None) for name, p in parts if len(p) > 1]
    return as_layout("class folders", entries) if entries else None


def as_layout(name: str, entries: list[Entry]) -> Layout:
    """Sorted by class and file name, and refused where a class could be two or an image counts twice."""
    splits: dict[str, Split | None] = {}
    for entry in entries:
        if splits.setdefault(entry.label, entry.split) != entry.split:
            raise UserError(f"class {entry.label} is in both {splits[entry.label]} and {entry.split}")
    folded = Counter(label.casefold().strip() for label in splits)
    alike = sorted((x for x in splits if folded[x.casefold().strip()] > 1), key=lambda x: (x.casefold().strip(), x))
    if alike:
        raise UserError(f"classes {alike[0]!r} and {alike[1]!r} differ only in case or spaces")
    twice = [file for file, count in Counter(e.name for e in entries).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]} is listed {Counter(e.name for e in entries)[twice[0]]} times")
    return Layout(name, tuple(sorted(entries, key=lambda e: (e.label, PurePosixPath(e.name).name, e.name))))


def _common_depth(images: list[str]) -> int:
    """Of the deepest folder that holds all images."""
    if not images:
        return 0
    first, last = (PurePosixPath(n).parent.parts for n in (min(images), max(images)))
    shorter = min(len(first), len(last))
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), shorter)


def _are_split_folders(parts: list[tuple[str, ...]]) -> bool:
    """Whether all folders at the top are parts of a split; images that lie in no class folder do not count."""
    found = {SPLIT_FOLDERS.get(p[0].lower()) for p in parts if len(p) > 1}
    classes = {SPLIT_FOLDERS.get(p[0].lower()) for p in parts if len(p) > 2}
    return None not in found and len(classes) > 1


def _split_tables(names: tuple[str, ...]) -> dict[Split, str] | None:
    """train.csv, val.csv and test.csv that lie together."""
    for folder in sorted(
        {PurePosixPath(n).parent for n in names if n.endswith(".csv")}, key=lambda f: (len(f.parts), f)
    ):
        tables = {split: str(folder / f"{split}.csv") for split in SPLITS}
        if set(tables.values()) <= set(names):
            return tables
    return None


def _rows_of_table(files: Files, table: str, images: list[str]) -> list[Entry]:
    """The images that a csv lists; each must be there."""
    if table not in files.names:
        tables = [n for n in files.names if n.endswith(".csv")]
        raise SettingError("csv", table, f"no such file below {files.place}; choices: {', '.join(tables) or 'none'}")
    try:
        reader = csv.DictReader(io.StringIO(next(files.read([table])).decode("utf-8-sig"), newline=""))
        rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{files.place / table}: not a csv in UTF-8 ({error})") from error
    if not rows or not {"filename", "label"} <= rows[0][1].keys():
        raise UserError(f"{files.place / table}: needs a first line filename,label or filename,label,split and rows")
    finder = Finder(PurePosixPath(table).parent, images)
    where = f"{files.place / table}"
    return [_entry(row, finder, f"{where} line {line}") for line, row in rows]


def _entry(row: dict[str, str], finder: Finder, where: str) -> Entry:
    name, label, split = (row.get(column) for column in COLUMNS)
    if not name or not label:
        raise UserError(f"{where}: has no {'label' if name else 'filename'}")
    if "split" in row and (split or "").lower() not in SPLIT_FOLDERS:
        raise UserError(f"{where}: split {split!r}; choices: train, val, test")
    found = finder.find(name, label)
    if found is None:
        raise UserError(f"{where}: {one_line(name)} is not there")
    return Entry(label, found, SPLIT_FOLDERS[split.lower()] if split else None)


class Finder:
    """Finds the file that a row means: beside the table, in images/, by class, or wherever its name is unique."""

    def __init__(self, folder: PurePosixPath, images: list[str]) -> None:
        self.folder, self.images = folder, set(images)
        self.by_name: dict[str, list[str]] = {}
        for image in images:
            self.by_name.setdefault(PurePosixPath(image).name, []).append(image)

    def find(self, name: str, label: str) -> str | None:
        for below in ("", "images", label, f"images/{label}"):
            candidate = str(self.folder / below / name)
            if candidate in self.images:
                return candidate
        if "/" in name:
            return None
        alike = self.by_name.get(PurePosixPath(name).name, [])
        return alike[0] if len(alike) == 1 else None
