"""Folders and files that somebody else may have made: read without following links, without waiting, up to a size.

A run folder that is named on the command line may come from anywhere. Reading it executes nothing (YAML's safe loader,
JSON, tensors alone); what is here keeps it from leading to other files, and from having no end.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import yaml

from metarun.errors import UserError, one_line

SETTINGS = 1 << 18  # bytes of a file of settings; metarun's own have 4000
MOST_NODES = 20_000  # values in it, as they are after its aliases are followed
DOCUMENT = 1 << 28  # bytes of a file of numbers
MOST_ENTRIES = 200_000  # files in a run folder
DEEPEST = 60  # levels of a value inside another


class Refused(OSError):
    """A file that is not read, for what it is; `strerror` says why."""


def content(path: Path, most: int = DOCUMENT) -> bytes:
    """The bytes of a regular file; `Refused` where it is a link, a pipe or a device, or has more than `most` bytes."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe would wait for a writer
    if path.is_symlink():
        raise Refused(0, "is a link, which is not followed in a run folder", str(path))
    with open(os.open(path, flags | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Refused(0, "is not a regular file", str(path))
        found = file.read(most + 1)
    if len(found) > most:
        raise Refused(0, f"has more than {most} bytes", str(path))
    return found


def text(path: Path, most: int = DOCUMENT, errors: str = "strict") -> str:
    """The same as text in UTF-8."""
    return content(path, most).decode("utf-8", errors).replace("\r\n", "\n")


def settings(path: Path) -> Any:
    """The value of a YAML file of settings; `ValueError` or `yaml.YAMLError` where it is none, or has no end."""
    value = yaml.safe_load(text(path, SETTINGS))
    if size_of(value) > MOST_NODES:  # an alias of a list of aliases of ... is short in the file only
        raise ValueError(f"it has more than {MOST_NODES} values")
    return value


def size_of(value: Any, depth: int = 0) -> int:
    """How many values there are in a nested one, counted no further than to be too many."""
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    count = 1
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    for item in value if isinstance(value, (list, tuple, set)) else ():
        count += size_of(item, depth + 1)
        if count > MOST_NODES:
            return count
    return count


def confine(folder: Path) -> None:
    """Refuse a run folder with a link that leads out of it: what is written there would be written elsewhere."""
    inside = os.path.realpath(folder)
    seen = 0
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path, seen = os.path.join(where, name), seen + 1
            if os.path.islink(path) and not within(os.path.realpath(path), inside):
                target = one_line(os.path.realpath(path))
                raise UserError(f"{one_line(path)}: is a link to {target}, outside of the run folder; not followed")
        if seen > MOST_ENTRIES:
            raise UserError(f"{folder}: has more than {MOST_ENTRIES} files; a run folder has a few dozen")


def within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
