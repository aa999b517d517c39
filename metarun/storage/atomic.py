"""Write files so that they are whole or absent whenever the process is killed; errors name the file."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from metarun.errors import TakenOver, WriteError


@contextlib.contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `WriteError` with the file's name, which errors in writing do not have by themselves."""
    try:
        yield
    except OSError as error:
        raise WriteError.of(path, error) from error


def replace(path: Path, content: bytes, predecessor: Path | None = None) -> None:
    """Write under a temporary name, force to disk, and rename; the file replaced is kept as `predecessor`."""
    temporary = path.with_name(path.name + ".tmp")
    with name_file_in_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if predecessor and path.exists():
                os.replace(path, predecessor)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):  # on a full disk it would take room
                temporary.unlink()
            raise


def append(file: FileIO, path: Path, line: bytes, end: int) -> int:
    """Append the whole line to a file that ends at `end`, and return its new end; on an error, remove the part that was
    written. Raise `TakenOver` if another process has written there."""
    check_sole_writer(file, path, end)
    with name_file_in_errors(path):
        try:
            rest = line
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise
    return end + len(line)


def check_sole_writer(file: FileIO, path: Path, end: int) -> None:
    """Raise `TakenOver` unless the file still lies at `path` and ends at `end`, where this process left it. A file that
    was deleted is a `WriteError`."""
    with name_file_in_errors(path):
        status = os.fstat(file.fileno())
        if status.st_nlink == 0 and not path.exists():  # what is written would go to a file that nobody can open
            raise FileNotFoundError(errno.ENOENT, "it was deleted while the run was going on")
    if status.st_nlink == 0 or status.st_size != end:
        raise TakenOver(f"{path}: another process writes there too")


def force_to_disk(file: FileIO, path: Path) -> None:
    """Wait until what was written is on the disk. An error that was held back until then names the file."""
    with name_file_in_errors(path):
        os.fsync(file.fileno())
