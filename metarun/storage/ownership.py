"""One writer for a run folder: a lock that the system releases when its holder ends, however it ends.

The file .run.lock says who has it, process and host. It stays: were it removed, somebody could hold it while another
makes a new one. What it says means nothing once nobody holds the lock, as after a kill.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from metarun.errors import UserError
from metarun.storage.atomic import name_file_in_errors

NAME = ".run.lock"
TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


@contextlib.contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """The folder is this process's own; `UserError` with the owner where it is another's."""
    new = not folder.exists()
    with name_file_in_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = FileIO(folder / NAME, "a+")
    with file:
        if not _locked(file):
            raise UserError(f"{folder}: another process writes there ({_owner(file)}); wait for it or stop it first")
        with name_file_in_errors(folder / NAME):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        try:
            yield
        except BaseException:
            if new:
                _leave_no_trace(folder)
            raise


def _leave_no_trace(folder: Path) -> None:
    """Of a job that was refused before it wrote anything, in a folder that was made for it."""
    with contextlib.suppress(OSError):
        if os.listdir(folder) == [NAME]:
            (folder / NAME).unlink()
            folder.rmdir()


def owner(folder: Path) -> str | None:
    """Who writes there now, if anybody does."""
    try:
        with FileIO(folder / NAME, "r+") as file:
            return None if _locked(file) else _owner(file)
    except OSError:
        return None


def _locked(file: FileIO) -> bool:
    """Whether the lock is this process's now, or the system has no such locks (Windows, some network file systems)."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return True
    except OSError as error:
        return error.errno not in TAKEN
    return True


def _owner(file: FileIO) -> str:
    file.seek(0)
    return file.read(200).decode(errors="replace").strip() or "it does not say which"
