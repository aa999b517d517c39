"""Write files so that they are whole or absent whenever the process is killed; errors name the file."""

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


def append(file: FileIO, path: Path, line: bytes) -> None:
    """Append the whole line; on an error, remove the part that was written."""
    with name_file_in_errors(path):
        if os.fstat(file.fileno()).st_nlink == 0:  # the line would go to a file that nobody can open
            raise FileNotFoundError(errno.ENOENT, "it was deleted while the run was going on")
        start = os.fstat(file.fileno()).st_size
        try:
            while line:
                line = line[file.write(line) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(start)
            raise
