"""Tables `filename,label[,split]` and more columns, read strictly: a row that does not fit is refused with its line."""

from __future__ import annotations

import csv
import io
import os
import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from metarun.data.files import Files
from metarun.errors import SettingError, UserError, one_line
from metarun.types import Split

_USUAL: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training", "base"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation", "novel"),
}
SPLIT_NAMES: dict[str, Split] = {
    prefix + name: split
    for split, names in _USUAL.items()
    for name in names
    for prefix in ("", "meta", "meta-", "meta_")
}
"""How people call the splits, in lower case."""

COLUMNS = ("filename", "label", "split")
DELIMITERS = (",", ";", "\t")


class Entry(NamedTuple):
    """One image: its class, its file, and its split, if the layout has one."""

    label: str
    name: str
    split: Split | None
    more: tuple[tuple[str, str], ...] = ()  # further columns of a table, and their values


def class_columns(entries: Iterable[Entry]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The further columns that have one value for all images of a class: column -> class -> value. Of the others: what
    a class has instead."""
    values: dict[str, dict[str, str]] = {column: {} for entry in entries for column, _ in entry.more}
    uneven: dict[str, str] = {}
    for entry in entries:
        found = dict(entry.more)
        for column, of_class in values.items():
            value = found.get(column, "").strip()
            before = of_class.setdefault(entry.label, value)
            if value != before or not value:
                what = f"both {before} and {value}" if value and before else "no value"
                uneven.setdefault(column, one_line(f"class {entry.label} has {what}"))
    return {column: of_class for column, of_class in values.items() if column not in uneven}, uneven


def read_table(files: Files, table: str, images: list[str]) -> list[Entry]:
    """The images that a csv lists. Raise at the first row that is wrong."""
    stored = as_name(files.path, table)
    if stored not in files.names:
        tables = [n for n in files.names if n.endswith(".csv")]
        raise SettingError("csv", table, f"no such file below {files.path}; choices: {', '.join(tables) or 'none'}")
    where = f"{files.path / stored}"
    try:
        text = next(files.read([stored])).decode("utf-8-sig")
        rows = _split_rows(text, where)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where}: is not a csv file in UTF-8 ({error})") from error
    find = _make_find(files.path, PurePosixPath(stored).parent, images)
    return [_parse_row(row, find, f"{where} line {line}") for line, row in rows]


def as_name(root: Path, text: str) -> str:
    """A path as people write it -> the name of a file below `root`: without `.` and `..`, with / for Windows' \\ where
    the path has no /, relative to `root` where it is absolute. The case stays."""
    path = text if "/" in text else text.replace("\\", "/")
    if posixpath.isabs(path):
        for start in (root, Path(os.path.realpath(root))):
            below = os.path.relpath(path, os.path.abspath(start))
            if not below.startswith(".."):
                return posixpath.normpath(below)
    return posixpath.normpath(path)


def _split_rows(text: str, where: str) -> list[tuple[int, dict[str, str]]]:
    """The rows with their lines, by the separator with which the first line names the columns."""
    first = next(iter(text.splitlines()), "")
    for delimiter in DELIMITERS:
        header = [name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter), [])]
        if {"filename", "label"} <= {*header}:
            break
    else:
        raise UserError(f"{where}: must begin with a line filename,label or filename,label,split; rows follow")
    twice = [name for name in COLUMNS if header.count(name) > 1]
    if twice:
        raise UserError(f"{where}: has the column {twice[0]} twice")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    next(reader)
    rows = []
    for fields in reader:
        if len(fields) not in (0, len(header)):
            named = delimiter.join(header)
            raise UserError(
                f"{where} line {reader.line_num}: has {len(fields)} fields, and the first line names {len(header)} "
                f"({named}); quote a field that contains the separator"
            )
        if fields:
            rows.append((reader.line_num, dict(zip(header, fields, strict=True))))
    if not rows:
        raise UserError(f"{where}: must begin with a line filename,label or filename,label,split; rows follow")
    return rows


def _make_find(root: Path, folder: PurePosixPath, images: list[str]) -> Callable[[str, str], str | None]:
    known, by_name = set(images), defaultdict(list)
    for image in images:
        by_name[PurePosixPath(image).name].append(image)

    def find(text: str, label: str) -> str | None:
        """The file of a row: beside the table, in images/, in a folder of its class, below the root, or anywhere if its
        name is unique."""
        name = as_name(root, text)
        for below in ("", "images", label, f"images/{label}"):
            candidate = posixpath.normpath(folder / below / name)
            if candidate in known:
                return candidate
        if name in known and "/" in name:
            return name
        candidates = by_name[name]  # none if the name has a folder
        return candidates[0] if len(candidates) == 1 else None

    return find


def _parse_row(row: dict[str, str], find: Callable[[str, str], str | None], where: str) -> Entry:
    name, label, split = row["filename"], row["label"], row.get("split")
    if not name.strip() or not label.strip():
        raise UserError(f"{where}: has no {'label' if name.strip() else 'filename'}")
    if split is not None and split.strip().lower() not in SPLIT_NAMES:
        raise UserError(f"{where}: split {split!r}; choices: train, val, test")
    found = find(name, label) or find(name.strip(), label)
    if found is None:
        missing = (
            "not below data.root" if posixpath.isabs(name) else "not there, nor in images/ or a folder of its class"
        )
        raise UserError(f"{where}: {one_line(name)} is {missing}")
    more = tuple((column, value) for column, value in row.items() if column not in COLUMNS)
    return Entry(label, found, SPLIT_NAMES[split.strip().lower()] if split else None, more)
