"""Files that are whole or not there, whenever the process is killed, and one line where they cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from metarun.errors import WriteError


@contextlib.contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Says of an error of the system which file it was: an error in writing, unlike one in opening, does not."""
    try:
        yield
    except OSError as error:
        raise WriteError.of(path, error) from error


def replace(path: Path, content: bytes, predecessor: Path | None = None) -> None:
    """Write under a temporary name, force it to disk, rename it; what was there before stays as `predecessor`."""
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
            with contextlib.suppress(OSError):  # on a full disk it would only take room
                temporary.unlink()
            raise


def append(file: FileIO, path: Path, line: bytes) -> None:
    """All of the line, or nothing of it where the system lets it be taken back."""
    with name_file_in_errors(path):
        if os.fstat(file.fileno()).st_nlink == 0:  # it would be written, and nobody could ever read it
            raise FileNotFoundError(errno.ENOENT, "it was deleted while the run was going on")
        start = os.fstat(file.fileno()).st_size
        try:
            while line:
                line = line[file.write(line) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(start)
            raise
