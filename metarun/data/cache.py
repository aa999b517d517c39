"""Decoded images on disk, memory-mapped: written once for a source, atomically; reading them executes nothing.

NAME-KEY.u8    the bytes of all images, row after row
NAME-KEY.json  their shape, the classes, what was noted while decoding, the sha256 of the bytes, and their time stamp

The JSON is written last, so that an interrupted write is no cache. Bytes whose size and time stamp are those of the
JSON are trusted; others are summed again, and rebuilt when they differ. One process builds, others wait for it.
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

from metarun.data.images import ImageTable
from metarun.errors import UserError
from metarun.storage.cache_folder import cache_folder
from metarun.storage.locks import file_lock
from metarun.storage.progress import print_notice
from metarun.storage.untrusted import text

KEPT = 1 << 28  # bytes of a mapped file that a process keeps resident
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError)
FORMAT = 2  # raise it when what is stored changes its meaning


class Decoded(NamedTuple):
    """What a builder says of the bytes that it wrote."""

    shape: tuple[int, int, int, int]  # n, C, H, W
    names: tuple[str, ...]  # of the classes
    starts: list[int]  # the first row of each class
    counts: list[int]  # its number of images
    notes: dict[str, Any]  # plain values worth keeping


class Cached(NamedTuple):
    table: ImageTable
    notes: dict[str, Any]
    path: Path  # of the bytes


Build = Callable[[BinaryIO], Decoded]


def cached_images(name: str, fingerprint: str, build: Build, verify: bool = False) -> Cached:
    """The images stored for this fingerprint of the sources; built and stored when there are none, or damaged ones.

    `verify` sums the bytes even where nothing speaks against them.
    """
    key = hashlib.sha256(f"{FORMAT}\n{fingerprint}".encode()).hexdigest()[:16]
    path = cache_folder() / f"{name}-{key}.u8"
    found = _read(path, verify) or _build_alone(path, build, verify)
    if found is None:
        raise UserError(f"METARUN_CACHE={path.parent}: {path.name} cannot be read back")
    return found


def _read(path: Path, verify: bool) -> Cached | None:
    """None where there is nothing, or something else than what was written."""
    try:
        stored = json.loads(text(path.with_suffix(".json")))
        if stored.pop("sum") != _sum_of(stored):
            return None
        shape, stat = stored["shape"], path.stat()
        touched = stat.st_mtime_ns != stored["mtime_ns"]
        if stat.st_size != math.prod(shape) or ((touched or verify) and _sha256(path) != stored["sha256"]):
            return None
        if touched:  # the bytes are what they were: the next start need not sum them
            os.utime(path, ns=(stat.st_atime_ns, stored["mtime_ns"]))
        with open(path, "rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # what is written stays in this process
        images = torch.frombuffer(mapping, dtype=torch.uint8).view(shape)
        starts, counts = (np.array(stored[k], dtype=np.intp) for k in ("starts", "counts"))
        names = tuple(stored["names"])
        if not _consistent(names, starts, counts, len(images)) or not isinstance(stored["notes"], dict):
            return None
    except BROKEN:  # the source is still there
        return None
    return Cached(ImageTable(images, names, starts, counts, _forgetting(mapping)), stored["notes"], path)


def _consistent(names: tuple[Any, ...], starts: np.ndarray, counts: np.ndarray, rows: int) -> bool:
    """Whether every class has a name, and rows that are there."""
    one_each = starts.shape == counts.shape == (len(names),) and all(isinstance(name, str) for name in names)
    return one_each and bool(((starts >= 0) & (counts >= 0) & (counts <= rows) & (starts <= rows - counts)).all())


def _forgetting(mapping: mmap.mmap) -> Callable[[int], None]:
    """After so many bytes read, tell the system that this process can do without the pages it has mapped.

    They stay in the system's cache, so that mapping them again costs little, but no longer count as the process's.
    """
    read = 0

    def forget(count: int) -> None:
        nonlocal read
        read += count
        if read > KEPT and hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)
            read = 0

    return forget


def _build_alone(path: Path, build: Build, verify: bool) -> Cached | None:
    """Build what is missing or damaged, unless another process did so meanwhile."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path) as lock:
            found = _read(path, verify)
            if found is not None:
                return found
            if path.exists() and path.with_suffix(".json").exists():
                print_notice(f"{path}: the decoded images are damaged; decoding again")
            if lock is not None:
                for left in path.parent.glob(f"{path.stem}*.tmp"):  # by a process that was killed
                    left.unlink(missing_ok=True)
            _write(path, build)
    except OSError as error:
        raise UserError(f"METARUN_CACHE={path.parent}: the decoded images cannot be stored there ({error})") from error
    return _read(path, verify=False)


def _write(path: Path, build: Build) -> None:
    """Under temporary names first, the description last: a reader sees all of it or nothing."""
    with _temporary(path) as file:
        decoded = build(file)
        if file.tell() != math.prod(decoded.shape):
            raise ValueError(f"{file.tell()} bytes were written for images of {list(decoded.shape)}")
        _to_disk(file)
        written = Path(file.name)
        description = decoded._asdict() | {"sha256": _sha256(written), "mtime_ns": written.stat().st_mtime_ns}
        os.replace(written, path)
    try:
        with _temporary(path) as file:
            file.write(json.dumps(description | {"sum": _sum_of(description)}).encode())
            _to_disk(file)
            os.replace(file.name, path.with_suffix(".json"))
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sum_of(description: Any) -> str:
    """Of what JSON makes of it, so that it is the same before and after."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` that does not outlive the block unless it was renamed."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, suffix=".tmp", delete=False) as file:
        try:
            yield file  # type: ignore[misc]
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file.name)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
