"""The entries of the cache folder: what each is, its size and last use; and how the oldest are removed.

NAME-KEY.u8, NAME-KEY.json           decoded images (data/cache.py)
features-KEY.npy, features-KEY.json  features by the fixed part of a network (data/features.py)
compiled/                            kernels of torch.compile (compute/compilation.py)
data/NAME/FILE, .FILE.checksum       a download (data/fetch.py)

Others may keep files in the folder too. An entry is what has such a name, is no link, and has beside it the lock of
its writer or a sound description; of a download, its record.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from metarun.storage.json_values import json_checksum
from metarun.storage.locks import file_lock, lock_path, try_lock
from metarun.storage.untrusted import read_text

STORED = re.compile(r"((.+)-[0-9a-f]{16})(\.u8|\.json|\.npy|(\.npy|\.json|[a-z0-9_]{8})\.tmp)")
CHECKSUM = re.compile("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}")
COMPILED, REMOVED = "compiled", "compiled.removed"  # the second while it is being removed
UNFINISHED = "unfinished"
IN_USE = "a run uses it"
NO_LOCKS = "a run may use it: the file system has no locks, which would tell"
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


class Entry(NamedTuple):
    kind: str  # images, features, compiled, download
    name: str  # below the cache folder
    source: str  # what it was made from
    paths: tuple[Path, ...]  # in the order in which they are removed
    locks: tuple[Path, ...]  # a process that uses the entry holds one of them
    size: int  # bytes
    used: float  # when last, in seconds since 1970
    content: Path | None = None  # the file with a checksum
    checksum: str | None = None  # sha256:DIGITS; None if it is not known since the description is damaged


def mark_used(path: Path) -> None:
    """Set the time stamp that says when an entry was used last. A cache that is only read has none."""
    with contextlib.suppress(OSError):
        os.utime(path)


def list_entries(folder: Path) -> tuple[list[Entry], list[str]]:
    """The entries and the names of what is not metarun's, as far as nobody removes them meanwhile.

    The entries are in the order in which they are removed: the least recently used first, but downloads last, since
    all else is made from them.
    """
    groups: dict[tuple[str, str], list[Path]] = {}
    found: list[Entry] = []
    others: list[str] = []
    for path in folder.iterdir() if folder.exists() else ():
        match = STORED.fullmatch(path.name)
        if path.name in (COMPILED, REMOVED):
            groups.setdefault((COMPILED, COMPILED), []).append(path)
        elif match:
            groups.setdefault((match[1], match[2]), []).append(path)
        elif path.name == "data" and path.is_dir() and not path.is_symlink():
            downloads, unknown = _list_downloads(path)
            found, others = found + downloads, others + unknown
        elif not (path.name.startswith(".") and path.name.endswith(".lock")):
            others.append(path.name)
    for (name, prefix), paths in groups.items():
        with contextlib.suppress(FileNotFoundError):
            entry = _read_compiled(paths) if name == COMPILED else _read_stored(name, prefix, paths)
            found += [entry] if entry else []
            others += [] if entry else [path.name for path in paths]
    return sorted(found, key=lambda entry: (entry.kind == "download", entry.used, entry.name)), sorted(others)


def shrink(folder: Path, most: float) -> Iterator[tuple[Entry, str | None]]:
    """Remove entries in their order until the others have at most `most` bytes. Yields each that was tried, with the
    reason if it was kept, as what a process uses is."""
    if sum(entry.size for entry in list_entries(folder)[0]) <= most:
        return
    with file_lock(folder / "shrink"):  # two at once would remove twice as much as is needed
        entries, _ = list_entries(folder)
        left = sum(entry.size for entry in entries)
        for entry in entries:
            if left <= most:
                return
            kept = remove(entry)
            left -= 0 if kept else entry.size
            yield entry, kept


def remove(entry: Entry) -> str | None:
    """Remove an entry unless a process uses it. Return why it was kept, None if it is gone.

    Whatever a kill leaves is never read: a description goes before its content, and a folder gets another name.
    """
    try:
        with _lock_all(entry.locks) as locked:
            if not locked:
                return NO_LOCKS if locked is None else IN_USE
            for path in entry.paths:
                if entry.kind == "compiled":
                    shutil.rmtree(path.replace(path.with_name(REMOVED)))
                else:
                    path.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    if entry.kind == "download":
        with contextlib.suppress(OSError):  # other files are there
            entry.paths[0].parent.rmdir()
    return None


@contextlib.contextmanager
def _lock_all(paths: Iterable[Path]) -> Iterator[bool | None]:
    """Whether no other process has a lock on one of these files, nor gets one in the block. None without locks."""
    with contextlib.ExitStack() as stack:
        for path in paths:
            is_lock = path.suffix == ".lock"
            if is_lock or path.exists():
                locked = try_lock(stack.enter_context(FileIO(path, "a" if is_lock else "r+")))
                if not locked:
                    yield locked
                    return
        yield True


def _read_stored(name: str, prefix: str, paths: list[Path]) -> Entry | None:
    """Images or features of these files; None if they are not metarun's."""
    kind, ending = ("features", ".npy") if prefix == "features" else ("images", ".u8")
    description, content = (paths[0].with_name(name + suffix) for suffix in (".json", ending))
    stored = _read_description(description)
    if any(path.is_symlink() for path in paths) or not (stored or lock_path(content).exists()):
        return None
    paths = sorted(paths, key=lambda path: (path != description, path.name))
    status = [path.stat() for path in paths]
    size, used = sum(s.st_size for s in status), max(s.st_mtime for s in status)
    entry = Entry(kind, name, UNFINISHED, tuple(paths), (lock_path(content), content), size, used)
    if content not in paths or (kind == "images" and description not in paths):
        return entry
    known = content if description in paths else None  # features of before there were descriptions have none
    checksum = f"sha256:{stored['sha256']}" if stored else None
    return entry._replace(source=_describe(kind, prefix, stored or {}), content=known, checksum=checksum)


def _read_description(path: Path) -> dict[str, Any] | None:
    """The description of an entry, None if it is missing or damaged."""
    try:
        stored = json.loads(read_text(path))
        sound = stored.pop("sum") == json_checksum(stored) and isinstance(stored["sha256"], str)
        return stored if sound and isinstance(stored.get("shape", []), list) else None
    except DAMAGED:
        return None


def _describe(kind: str, prefix: str, stored: dict[str, Any]) -> str:
    """What an entry was made from."""
    if kind == "features":
        return f"{stored['network']} on {stored['images']}" if "network" in stored else ""
    shape = [str(n) for n in stored.get("shape", ())]
    return str(stored.get("root") or prefix) + (f", {shape[0]} of {'x'.join(shape[1:])}" if shape else "")


def _read_compiled(paths: list[Path]) -> Entry | None:
    """The kernels of torch.compile; None if no run of metarun has compiled there, or a link leads elsewhere."""
    lock = lock_path(paths[0].with_name(COMPILED))
    below = [file for path in paths for file in (path, *path.rglob("*"))]
    if not lock.exists() or any(file.is_symlink() for file in below) or not all(path.is_dir() for path in paths):
        return None
    size = 0
    for file in below:
        with contextlib.suppress(FileNotFoundError):  # the compiler's own temporary files
            size += file.stat().st_size if file.is_file() else 0
    used = max(path.stat().st_mtime for path in paths)
    paths = sorted(paths, reverse=True)  # what another process began to remove comes first
    return Entry("compiled", COMPILED, "torch.compile", tuple(paths), (lock,), size, used)


def _list_downloads(data: Path) -> tuple[list[Entry], list[str]]:
    """The downloads that have a record, and the names of all else below `data`: perhaps somebody's own copy."""
    entries, known = [], set()
    users = tuple(sorted(data.parent.glob(".*.u8.lock")))  # decoding reads them
    for record in data.glob("*/.*.checksum"):
        file = record.with_name(record.name[1:].removesuffix(".checksum"))
        with contextlib.suppress(OSError, ValueError):
            checksum = read_text(record)
            if not CHECKSUM.fullmatch(checksum) or any(p.is_symlink() for p in (file, file.parent)):
                continue
            size, used = file.stat().st_size, record.stat().st_mtime
            name = file.relative_to(data.parent).as_posix()
            entries.append(Entry("download", name, file.parent.name, (record, file), users, size, used, file, checksum))
            known |= {record, file}
    others = [p for p in data.glob("*") if p.is_symlink() or not p.is_dir()]
    others += [p for p in data.glob("*/*") if p not in known and not p.parent.is_symlink()]
    return entries, [p.relative_to(data.parent).as_posix() for p in others]
