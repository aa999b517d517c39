"""A cache of decoded images on disk: written once per source, atomically, and memory-mapped; reading executes nothing.

NAME-KEY.u8    the bytes of all images, row after row
NAME-KEY.json  their shape, files and classes, notes of the decoder, the sha256 of the bytes, and their time stamp

The JSON is written last, so an interrupted write leaves no valid cache. Bytes whose size and time stamp match the JSON
are trusted; of others the checksum is verified, and they are rebuilt if it is wrong. One process builds, others wait.
A mapping holds a shared lock on the bytes, and the time stamp of the JSON is that of the last use: `metarun cache`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch

from metarun.data.files import file_checksum
from metarun.data.images import ImageTable
from metarun.errors import UserError
from metarun.storage.cache_entries import mark_used
from metarun.storage.json_values import json_checksum
from metarun.storage.locks import file_lock, share_lock
from metarun.storage.progress import print_notice
from metarun.storage.run_folder import cache_folder
from metarun.storage.untrusted import read_text

RESIDENT = 1 << 28  # bytes of a mapped file that a process keeps in memory
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError)
FORMAT = 5  # increase it when the stored format changes


class DecodedImages(NamedTuple):
    """The description of the bytes that a builder wrote."""

    shape: tuple[int, int, int, int]  # n, C, H, W
    names: tuple[str, ...]  # of the classes
    starts: list[int]  # the first row of each class
    counts: list[int]  # its number of images
    notes: dict[str, Any]  # plain values for the data set
    files: list[str]  # the name of each image below the data's root


class CachedImages(NamedTuple):
    table: ImageTable
    notes: dict[str, Any]
    path: Path  # of the bytes


Build = Callable[[BinaryIO], DecodedImages]


def cache_images(
    name: str, fingerprint: str, build: Build, verify: bool = False, root: Path | None = None
) -> CachedImages:
    """The images stored for this fingerprint of the sources. Build and store them if they are missing or damaged.

    `verify` checks the checksum of the bytes even if their size and time stamp match. `metarun cache` lists the images
    as those of `root`.
    """
    key = hashlib.sha256(f"{FORMAT}\n{fingerprint}".encode()).hexdigest()[:16]
    path = cache_folder() / f"{name}-{key}.u8"
    cached = _read(path, verify) or _build_locked(path, build, verify, root)
    if cached is None:
        raise UserError(f"METARUN_CACHE={path.parent}: {path.name} cannot be read back after writing it")
    return cached


def _read(path: Path, verify: bool) -> CachedImages | None:
    """The cached images, or None if they are missing or damaged."""
    try:
        stored = json.loads(read_text(path.with_suffix(".json")))
        if stored.pop("sum") != json_checksum(stored):
            return None
        shape, stat = stored["shape"], path.stat()
        touched = stat.st_mtime_ns != stored["mtime_ns"]
        if stat.st_size != math.prod(shape):
            return None
        if (touched or verify) and file_checksum(path, "sha256") != stored["sha256"]:
            return None
        if touched:  # the bytes are unchanged: the next start need not verify them
            with contextlib.suppress(OSError):  # a folder of others, or read-only
                os.utime(path, ns=(stat.st_atime_ns, stored["mtime_ns"]))
        with open(path, "rb") as file:
            share_lock(file)  # of the mapping as well, which keeps the file open
            if os.fstat(file.fileno()).st_nlink == 0:  # it was being removed
                return None
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # writes stay in this process
        images = torch.frombuffer(mapping, dtype=torch.uint8).view(shape)
        starts, counts = (np.array(stored[k], dtype=np.intp) for k in ("starts", "counts"))
        names, files = tuple(stored["names"]), tuple(stored["files"])
        one_each = starts.shape == counts.shape == (len(names),) and len(files) == len(images)
        texts = all(isinstance(name, str) for name in (*names, *files))
        exist = (starts >= 0) & (counts >= 0) & (counts <= len(images)) & (starts <= len(images) - counts)
        if not (one_each and texts and exist.all() and isinstance(stored["notes"], dict)):
            return None
    except BROKEN:  # it is rebuilt from the source
        return None
    mark_used(path.with_suffix(".json"))
    table = ImageTable(images, names, starts, counts, files, _page_release(mapping))
    return CachedImages(table, stored["notes"], path)


def _page_release(mapping: mmap.mmap) -> Callable[[int], None]:
    """A function that counts bytes read, and releases the mapped pages after each `RESIDENT` bytes.

    The pages stay in the system's cache, so mapping them again is cheap, but no longer count as this process's memory.
    """
    read = 0

    def release(count: int) -> None:
        nonlocal read
        read += count
        if read > RESIDENT and hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)
            read = 0

    return release


def _build_locked(path: Path, build: Build, verify: bool, root: Path | None) -> CachedImages | None:
    """Build missing or damaged images, unless another process did so meanwhile."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path) as lock:
            cached = _read(path, verify)
            if cached is not None:
                return cached
            if path.exists() and path.with_suffix(".json").exists():
                print_notice(f"{path}: the decoded images are damaged; decoding again")
            if lock is not None:
                for stale in path.parent.glob(f"{path.stem}*.tmp"):  # of a process that was killed
                    stale.unlink(missing_ok=True)
            _write(path, build, root)
    except OSError as error:
        raise UserError(f"METARUN_CACHE={path.parent}: the decoded images cannot be stored there ({error})") from error
    return _read(path, verify=False)


def _write(path: Path, build: Build, root: Path | None) -> None:
    """Write under temporary names, the description last: a reader sees both files or none."""
    with _replacement(path) as file:
        decoded = build(file)
        if file.tell() != math.prod(decoded.shape):
            raise ValueError(f"{file.tell()} bytes were written for images of {list(decoded.shape)}")
        file.flush()
        written = Path(file.name)
        stamp = {"sha256": file_checksum(written, "sha256"), "mtime_ns": written.stat().st_mtime_ns}
        description = decoded._asdict() | stamp | ({} if root is None else {"root": str(root.absolute())})
    try:
        with _replacement(path.with_suffix(".json")) as file:
            file.write(json.dumps(description | {"sum": json_checksum(description)}).encode())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _replacement(path: Path) -> Iterator[BinaryIO]:
    """A temporary file that is renamed to `path` at the end of the block, or deleted after an error."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, suffix=".tmp", delete=False) as file:
        try:
            yield file  # type: ignore[misc]
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file.name)
