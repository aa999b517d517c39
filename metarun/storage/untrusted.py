"""Read folders and files of unknown origin: without following links, without waiting, up to a size.

A run folder that is named on the command line may come from anywhere. Reading it executes nothing (YAML's safe loader,
JSON, tensors alone). The functions here keep it from leading to other files, and from having no end.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from metarun.errors import UserError, one_line

SETTINGS = 1 << 18  # bytes of a file of settings; metarun's own have 4000
MOST_NODES = 20_000  # values in it, once its aliases are followed
DOCUMENT = 1 << 28  # bytes of a file of numbers
MOST_ENTRIES = 200_000  # files in a run folder
DEEPEST = 60  # levels of nested values
STALE_READS = 3  # of a file that others replace

Content = TypeVar("Content")


class Refused(OSError):
    """A file of a kind or size that is not read; `strerror` says why."""


def read_again_if_stale(read: Callable[[Path], Content], path: Path) -> Content:
    """Read a file. On a network file system another machine may replace it meanwhile, which ends in ESTALE; to open it
    again finds the new one."""
    for _ in range(STALE_READS - 1):
        try:
            return read(path)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return read(path)


def read_bytes(path: Path, most: int = DOCUMENT) -> bytes:
    """Read a regular file. Raise `Refused` for a link, a pipe or a device, and for more than `most` bytes."""
    content = read_again_if_stale(lambda file: _read_regular(file, most), path)
    if len(content) > most:
        raise Refused(0, f"has more than {most} bytes", str(path))
    return content


def _read_regular(path: Path, most: int) -> bytes:
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe would wait for a writer
    if path.is_symlink():
        raise Refused(0, "is a link, which is not followed in a run folder", str(path))
    with open(os.open(path, flags | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Refused(0, "is not a regular file", str(path))
        return file.read(most + 1)


def read_text(path: Path, most: int = DOCUMENT, errors: str = "strict") -> str:
    """Read a regular file as UTF-8, like `read_bytes`."""
    return read_bytes(path, most).decode("utf-8", errors).replace("\r\n", "\n")


def read_yaml(path: Path) -> Any:
    """Read a YAML file of settings. Raise `ValueError` or `yaml.YAMLError` if it is none, or has no end."""
    value = yaml.safe_load(read_text(path, SETTINGS))
    if count_values(value) > MOST_NODES:  # an alias of a list of aliases of ... is short in the file only
        raise ValueError(f"it has more than {MOST_NODES} values")
    return value


def count_values(value: Any, depth: int = 0) -> int:
    """Count the values in a nested one, up to the first number above `MOST_NODES`."""
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    count = 1
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    for item in value if isinstance(value, (list, tuple, set)) else ():
        count += count_values(item, depth + 1)
        if count > MOST_NODES:
            return count
    return count


def check_links(folder: Path) -> None:
    """Raise `UserError` for a link that leads out of a run folder: writing through it would change other files."""
    inside = Path(os.path.realpath(folder))
    count = 0
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            if os.path.islink(path) and not Path(target := os.path.realpath(path)).is_relative_to(inside):
                link = f"{one_line(path)}: is a link to {one_line(target)}"
                raise UserError(f"{link}, outside of the run folder; not followed")
        count += len(folders) + len(files)
        if count > MOST_ENTRIES:
            raise UserError(f"{folder}: has more than {MOST_ENTRIES} files; a run folder has a few dozen")
