"""Locks on files: one writer for a run folder, exclusive work on a cache, and n jobs at once.

The lock itself is `filelock.lock_descriptor`. The operating system releases it when its holder ends, also by a kill.
The files around it are handled here and not by `filelock.FileLock`, for three reasons: the lock file of a run folder
names its owner; the process of a sweep's job inherits the file descriptor, which `FileLock` does not hand out; and on
file systems without locks work goes on unlocked, where `FileLock` fails or makes files that outlive a kill.

A lock file is never removed while somebody could hold it: another process would make a new one and lock that.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from metarun.errors import UserError
from metarun.storage.atomic import name_file_in_errors

OWNER_FILE = ".run.lock"
POLL = 0.2  # seconds between two looks for a free slot


def try_lock(file: FileIO, wait: bool = False) -> bool | None:
    """Whether the lock is this process's now; None where the file system has no locks."""
    try:
        return lock_descriptor(file.fileno(), blocking=wait)
    except OSError:  # as ENOLCK or ENOTSUP, of some network file systems
        return None


def share_lock(file: IO[Any]) -> None:
    """Wait until nobody has the lock alone, and hold it beside others. Nothing happens where there are no such locks.

    The lock lasts as long as this opening of the file: until the file and the mappings made from it are closed.
    """
    with contextlib.suppress(ImportError, OSError):
        import fcntl  # not on Windows

        fcntl.flock(file.fileno(), fcntl.LOCK_SH)


@functools.cache
def share_until_exit(path: Path) -> IO[Any]:
    """Share the lock of `path` with others until this process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = FileIO(lock_path(path), "a")
    share_lock(file)
    return file


def lock_path(path: Path) -> Path:
    """The lock file of `path`."""
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[int | None]:
    """Wait until no other process is in this block for `path`.

    Yields the file descriptor that holds the lock, or None where the file system has no locks. A process that inherits
    the descriptor keeps the lock as long as it lives.
    """
    with FileIO(lock_path(path), "a") as file:
        yield file.fileno() if try_lock(file, wait=True) else None


@contextlib.contextmanager
def lock_slot(folder: Path, count: int) -> Iterator[int]:
    """Wait for one of `count` slots in the folder; yields its number."""
    folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(FileIO(folder / str(number), "a")) for number in range(count)]
        while True:
            for number, file in enumerate(files):
                if try_lock(file) is not False:
                    yield number
                    return
            time.sleep(POLL)


@contextlib.contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Make this process the folder's only writer; `UserError` with the owner if another process writes there.

    The owner's name in the lock file means nothing once nobody holds the lock, as after a kill.
    """
    new = not folder.exists()
    with name_file_in_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = FileIO(folder / OWNER_FILE, "a+")
    with contextlib.ExitStack() as closing:
        closing.callback(_close, file)
        if try_lock(file) is False:
            raise UserError(f"{folder}: another process writes there ({_owner(file)}); wait for it or stop it first")
        with name_file_in_errors(folder / OWNER_FILE):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        try:
            yield
        except BaseException:
            if new:  # a job that was refused before it wrote anything leaves no folder
                with contextlib.suppress(OSError):
                    if os.listdir(folder) == [OWNER_FILE]:
                        (folder / OWNER_FILE).unlink()
                        folder.rmdir()
            raise


def find_owner(folder: Path) -> str | None:
    """The process that writes to a run folder now, None if there is none."""
    try:
        with FileIO(folder / OWNER_FILE, "r+") as file:
            return _owner(file) if try_lock(file) is False else None
    except OSError:
        return None


def _close(file: FileIO) -> None:
    """Close a lock file. An error that some file systems report only now is of its text, which nobody needs now."""
    with contextlib.suppress(OSError):
        file.close()


def _owner(file: FileIO) -> str:
    with contextlib.suppress(OSError):  # on Windows nothing can read the byte that another process has locked
        file.seek(0)
        if name := file.read(200).decode(errors="replace").strip():
            return name
    return "it does not say which"
