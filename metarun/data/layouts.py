"""The layouts in which people keep class-labelled images, recognised by the names of the files alone.

csv             one table `filename,label[,split]` that data.csv names
split csvs      train.csv, val.csv, test.csv (`filename,label`) and a folder images/: miniImageNet as Ravi published it
split folders   train/, val/, test/, each with a folder per class
class folders   a folder per class
All of it may lie below other folders. The images of a class are ordered by file name, whatever the layout. Splits have
several usual names (`SPLIT_NAMES`). Where a class folder has folders of images itself, `data.classes` says whether the
class is the upper folder (top) or the lower (leaf). `image_list.py` reads the tables.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from metarun.data.files import Files
from metarun.data.image_list import SPLIT_NAMES, Entry, read_table
from metarun.errors import SettingError, UserError
from metarun.types import Split

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
CLASSES = ("auto", "top", "leaf")
"""Which folders are classes: those that hold images (leaf), or the highest (top); auto: raise where these differ."""


class Layout(NamedTuple):
    name: str
    entries: tuple[Entry, ...]  # sorted by class, then by the file's own name
    passed_over: tuple[str, ...] = ()  # images that belong to no class
    form: str = ""  # the folders that were understood: SPLIT/CLASS/image


def recognise(files: Files, table: str | None = None, classes: str = "auto", joined: bool = False) -> Layout | None:
    """The layout of the files, or None if it is none of these. `table` is the setting data.csv. Raise `UserError` where
    the names of the folders can be understood in two ways and `classes` does not decide. With `joined`, folders of
    splits that share a class divide its images: they are joined, and the layout has no split of the classes."""
    images = [name for name in files.names if name.lower().endswith(IMAGES)]
    if table is not None:
        return _from_tables("csv", read_table(files, table, images), images)
    tables = _split_tables(files.names)
    if tables:
        rows = [e._replace(split=split) for split, t in tables.items() for e in read_table(files, t, images)]
        return _from_tables("split csvs", rows, images)
    common = posixpath.commonpath([posixpath.dirname(name) for name in images]) if images else ""
    depth = len(PurePosixPath(common).parts)
    parts = {name: PurePosixPath(name).parts[depth:-1] for name in images}  # the folders of each image
    splits = _split_folders(list(parts.values()), classes)
    below = {name: folders[1 if splits else 0 :] for name, folders in parts.items()}
    leaf = _leaf_is_class(list(below.values()), classes, files)
    entries = [
        Entry("/".join(folders) if leaf else folders[0], name, splits[parts[name][0]] if splits else None)
        for name, folders in below.items()
        if folders
    ]
    if not entries:
        return None
    if joined and len({(e.label, e.split) for e in entries}) > len({e.label for e in entries}):
        entries = [entry._replace(split=None) for entry in entries]
    where = ("SPLIT/" if splits else "") + ("GROUP/CLASS/" if leaf else "CLASS/")
    passed_over = tuple(name for name, folders in below.items() if not folders)
    kind = "split folders" if any(entry.split for entry in entries) else "class folders"
    return make_layout(kind, entries, passed_over, f"{where}image")


def _from_tables(name: str, entries: list[Entry], images: Sequence[str]) -> Layout:
    listed = {entry.name for entry in entries}
    form = "the rows of the table" if name == "csv" else "the rows of the tables"
    return make_layout(name, entries, tuple(image for image in images if image not in listed), form)


def _split_folders(parts: list[tuple[str, ...]], classes: str) -> dict[str, Split] | None:
    """The split that each highest folder names, or None if these are no splits.

    They are if all of them have such names, and two of them name different ones; loose images in them count, so that
    a test folder without class folders is none of the classes.
    """
    tops = sorted({folders[0] for folders in parts if folders})
    named = {top: SPLIT_NAMES[top.lower()] for top in tops if top.lower() in SPLIT_NAMES}
    deep = any(len(folders) > 1 for folders in parts if folders and folders[0] in named)
    if len(set(named.values())) < 2 or not deep or (classes == "top" and len(named) < len(tops)):
        return None
    others = [top for top in tops if top not in named]
    if others:
        meant = f"folders {', '.join(named)} are named as splits, but {', '.join(others[:3])} beside them"
        raise SettingError("classes", classes, f"{meant} is not; move it, or data.classes=top takes all as classes")
    return named


def _leaf_is_class(below: list[tuple[str, ...]], classes: str, files: Files) -> bool:
    """Whether classes are the folders that hold images, where these are not the highest. `below` has each image's
    folders from that of its class on. Raise `SettingError` where `classes` has to say it."""
    inner: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for folders in below:
        if folders:
            inner[folders[0]].add(folders[1:])
    if classes != "auto":
        return classes == "leaf" and any(parts != {()} for parts in inner.values())
    # One folder below, or images of its own beside it: the upper one is the class.
    split_up = {top: parts for top, parts in inner.items() if len(parts) > 1 and () not in parts}
    if not split_up:
        return False
    top, parts = next(iter(sorted(split_up.items())))
    first = sorted("/".join((top, *part)) for part in parts)
    count = sum(len(parts) for parts in inner.values())
    raise SettingError(
        "classes",
        classes,
        f"below {files.path}, folder {top} has folders of images: {', '.join(first[:2])}; choices: "
        f"leaf ({count} classes, as {first[0]}), top ({len(inner)} classes, as {top})",
    )


def make_layout(name: str, entries: list[Entry], passed_over: tuple[str, ...] = (), form: str = "") -> Layout:
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
    ordered = tuple(sorted(entries, key=lambda e: (e.label, PurePosixPath(e.name).name, e.name)))
    return Layout(name, ordered, passed_over, form)


def _split_tables(names: tuple[str, ...]) -> dict[Split, str] | None:
    """The tables of two splits or three in one folder, the highest that has most of them."""
    found: dict[PurePosixPath, dict[Split, str]] = defaultdict(dict)
    for name in names:
        path = PurePosixPath(name)
        split = SPLIT_NAMES.get(path.stem.lower())
        if path.suffix.lower() == ".csv" and split:
            if split in found[path.parent]:
                raise UserError(f"{found[path.parent][split]} and {name} are both tables of the {split} split")
            found[path.parent][split] = name
    folders = sorted(found, key=lambda folder: (-len(found[folder]), len(folder.parts), folder))
    return found[folders[0]] if folders and len(found[folders[0]]) > 1 else None
