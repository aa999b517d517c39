"""One process at a time: a lock that the system releases when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of some network file systems


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[bool]:
    """Wait until no other process is in this block for `path`; yields False where the system has no such locks.

    The lock is an empty hidden file that stays: were it removed, somebody could hold it while another makes a new one.
    """
    with open(path.with_name(f".{path.name}.lock"), "wb") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except ImportError:  # Windows
            yield False
            return
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            yield False
            return
        yield True
