"""The layouts in which people keep class-labelled images, recognised by the names of the files alone.

csv             one table `filename,label[,split]` that data.csv names
split csvs      train.csv, val.csv, test.csv (`filename,label`) and a folder images/: miniImageNet as Ravi published it
split folders   train/, val/, test/, each with a folder per class
class folders   a folder per class
All of it may lie below other folders. The images of a class are ordered by file name, whatever the layout.
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable
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
    """One image: its class, its file, and its split, if the layout has one."""

    label: str
    name: str
    split: Split | None


class Layout(NamedTuple):
    name: str
    entries: tuple[Entry, ...]  # sorted by class, then by the file's own name


def recognise(files: Files, table: str | None = None) -> Layout | None:
    """The layout of the files, or None if it is none of these. `table` is the setting data.csv."""
    images = [name for name in files.names if name.lower().endswith(IMAGES)]
    if table is not None:
        return make_layout("csv", _read_table(files, table, images))
    tables = _split_tables(files.names)
    if tables:
        rows = [Entry(e.label, e.name, split) for split, t in tables.items() for e in _read_table(files, t, images)]
        return make_layout("split csvs", rows)
    common = posixpath.commonpath([posixpath.dirname(name) for name in images]) if images else ""
    depth = len(PurePosixPath(common).parts)
    parts = [(name, PurePosixPath(name).parts[depth:]) for name in images]
    tops = {SPLIT_FOLDERS.get(p[0].lower()) for _, p in parts if len(p) > 1}
    deep = [(name, p) for name, p in parts if len(p) > 2]
    if None not in tops and len({SPLIT_FOLDERS[p[0].lower()] for _, p in deep}) > 1:
        return make_layout("split folders", [Entry(p[1], name, SPLIT_FOLDERS[p[0].lower()]) for name, p in deep])
    entries = [Entry(p[0], name, None) for name, p in parts if len(p) > 1]
    return make_layout("class folders", entries) if entries else None


def make_layout(name: str, entries: list[Entry]) -> Layout:
    """Sort the entries by class and file name. Raise if a class is in two splits, if two classes have nearly the same
    name, or if an image is listed twice."""
    splits: dict[str, Split | None] = {}
    for entry in entries:
        if splits.setdefault(entry.label, entry.split) != entry.split:
            both = f"{splits[entry.label]} and {entry.split}"
            raise UserError(f"class {entry.label} is in both {both}; a class belongs to one split")
    folded = Counter(label.casefold().strip() for label in splits)
    alike = sorted((x for x in splits if folded[x.casefold().strip()] > 1), key=lambda x: (x.casefold().strip(), x))
    if alike:
        raise UserError(f"classes {alike[0]!r} and {alike[1]!r} differ only in case or spaces; rename one")
    for file, count in Counter(entry.name for entry in entries).items():
        if count > 1:
            raise UserError(f"{file} is listed {count} times")
    return Layout(name, tuple(sorted(entries, key=lambda e: (e.label, PurePosixPath(e.name).name, e.name))))


def _split_tables(names: tuple[str, ...]) -> dict[Split, str] | None:
    """train.csv, val.csv and test.csv in one folder, the highest that has all three."""
    folders = {PurePosixPath(name).parent for name in names if name.endswith(".csv")}
    for folder in sorted(folders, key=lambda folder: (len(folder.parts), folder)):
        tables = {split: str(folder / f"{split}.csv") for split in SPLITS}
        if set(tables.values()) <= set(names):
            return tables
    return None


def _read_table(files: Files, table: str, images: list[str]) -> list[Entry]:
    """The images that a csv lists. Raise at the first row that is wrong."""
    if table not in files.names:
        tables = [n for n in files.names if n.endswith(".csv")]
        raise SettingError("csv", table, f"no such file below {files.path}; choices: {', '.join(tables) or 'none'}")
    where = f"{files.path / table}"
    try:
        reader = csv.DictReader(io.StringIO(next(files.read([table])).decode("utf-8-sig"), newline=""))
        rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where}: is not a csv file in UTF-8 ({error})") from error
    if not rows or not {"filename", "label"} <= rows[0][1].keys():
        raise UserError(f"{where}: must begin with a line filename,label or filename,label,split; rows follow")
    folder, known, by_name = PurePosixPath(table).parent, set(images), defaultdict(list)
    for image in images:
        by_name[PurePosixPath(image).name].append(image)

    def find(name: str, label: str) -> str | None:
        """The file of a row: beside the table, in images/, in a folder of its class, or anywhere if its name is
        unique."""
        for below in ("", "images", label, f"images/{label}"):
            candidate = str(folder / below / name)
            if candidate in known:
                return candidate
        candidates = by_name[name]  # none if the name has a folder
        return candidates[0] if len(candidates) == 1 else None

    return [_parse_row(row, find, f"{where} line {line}") for line, row in rows]


def _parse_row(row: dict[str, str], find: Callable[[str, str], str | None], where: str) -> Entry:
    name, label, split = (row.get(column) for column in COLUMNS)
    if not name or not label:
        raise UserError(f"{where}: has no {'label' if name else 'filename'}")
    if "split" in row and (split or "").lower() not in SPLIT_FOLDERS:
        raise UserError(f"{where}: split {split!r}; choices: train, val, test")
    found = find(name, label)
    if found is None:
        raise UserError(f"{where}: {one_line(name)} is not there, nor in images/ or a folder of its class")
    return Entry(label, found, SPLIT_FOLDERS[split.lower()] if split else None)
