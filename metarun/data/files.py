"""The files of a folder, a zip or a tar archive, read without extracting any.

Members of an archive with an absolute name or with `..`, links and devices are left out, so that no name in an archive
can reach another folder. Hidden files and what macOS adds to archives are left out as well.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import os
import stat
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, Protocol

from metarun.errors import UserError, one_line

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LARGEST = 1 << 26  # bytes of one image file; more is a mistake or an attack
SUSPECT = 1 << 28  # bytes; the compression ratio of archives with more content is limited
MOST_TIMES = 100  # that ratio
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    ValueError,
    OSError,
)


class Read(Protocol):
    def __call__(self, names: Iterable[str], largest: int = LARGEST) -> Iterator[bytes]:
        """Raise `UserError` at a file that cannot be read, or that has more than `largest` bytes."""


class Files(NamedTuple):
    """The files of a folder or an archive: names relative to `path`, sorted, and a function that reads them."""

    path: Path
    names: tuple[str, ...]
    read: Read  # names -> contents, in the same order


def expand_path(text: str) -> Path:
    """A path from the settings, with ~ for the home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # an unknown user
        return Path(text)


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def open_files(path: Path) -> Files:
    """The files below a folder, or in an archive. Raise `UserError` if it cannot be read."""
    if path.is_dir():
        return _open_folder(path)
    try:
        return _open_zip(path) if zipfile.is_zipfile(path) else _open_tar(path)
    except DAMAGED as error:
        raise UserError(f"{path}: is not a readable zip or tar archive ({one_line(error)})") from error


def fingerprint(path: Path) -> str:
    """A hash that changes when a file of the folder (or the archive itself) is added, removed, renamed or written."""
    found = [("", path.stat())] if path.is_file() else list(_walk(path))
    lines = (f"{name} {status.st_size} {status.st_mtime_ns}" for name, status in sorted(found))
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def file_checksum(path: Path, kind: str) -> str:
    """The hexadecimal checksum of a file; `kind` is a name of hashlib."""
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _open_folder(path: Path) -> Files:
    def read(names: Iterable[str], largest: int = LARGEST) -> Iterator[bytes]:
        for name in names:
            try:
                _check_size(path, name, (path / name).stat().st_size, largest)
                yield (path / name).read_bytes()
            except OSError as error:
                raise UserError(f"{path / name}: cannot be read ({error.strerror})") from error

    return Files(path, tuple(sorted(name for name, _ in _walk(path))), read)


def _walk(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Each regular file below the folder and its stat; links to folders are followed once."""
    seen: set[str] = set()
    pending = [""]
    while pending:
        below = pending.pop()
        folder = path / below
        if os.path.realpath(folder) in seen:
            continue
        seen.add(os.path.realpath(folder))
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{folder}: cannot be read ({error.strerror})") from error
        for entry in entries:
            if not _is_shown(entry.name):
                continue
            try:
                if entry.is_dir():
                    pending.append(below + entry.name + "/")
                elif entry.is_file():
                    yield below + entry.name, entry.stat()
            except OSError:  # a broken link
                continue


def _open_zip(path: Path) -> Files:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        files = (i for i in infos if i.filename and not (i.is_dir() or stat.S_ISLNK(i.external_attr >> 16)))
        members = [(info.filename, info.file_size) for info in files]
    check_expansion(path, sum(size for _, size in members))

    @contextlib.contextmanager
    def reader() -> Iterator[Callable[[str], bytes]]:
        with zipfile.ZipFile(path) as archive:
            yield archive.read

    return _open_members(path, members, reader)


def _open_tar(path: Path) -> Files:
    plain = _decompress(path)

    def open_tar() -> tarfile.TarFile:
        if plain is None:
            return tarfile.open(path, "r:")
        plain.seek(0)
        return tarfile.open(fileobj=plain, mode="r:")

    @contextlib.contextmanager
    def reader() -> Iterator[Callable[[str], bytes]]:
        with open_tar() as archive:
            infos = {m.name: m for m in archive.getmembers() if m.isreg()}  # getmember() would search all names
            yield lambda raw: archive.extractfile(infos[raw]).read()  # type: ignore[union-attr]

    if plain is not None:
        weakref.finalize(reader, plain.close)
    with open_tar() as archive:
        members = [(m.name, m.size) for m in archive.getmembers() if m.isreg()]
        # tarfile takes a damaged header, or a file cut short, for the end.
        file: Any = archive.fileobj
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"it breaks off after {len(archive.getmembers())} members")
    return _open_members(path, members, reader)


def _decompress(path: Path) -> IO[bytes] | None:
    """A compressed tar as a temporary plain file, in which random access is fast; None if it is not compressed."""
    openers: dict[str, Any] = {"": None, "gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
    reasons = []
    for compression, opener in openers.items():
        try:
            tarfile.open(path, f"r:{compression}").close()  # type: ignore[call-overload]
        except tarfile.ReadError as error:
            reasons.append(error)
            continue
        if opener is None:
            return None
        with opener(path) as source, contextlib.ExitStack() as on_failure:
            plain = on_failure.enter_context(tempfile.TemporaryFile())
            while block := source.read(1 << 20):
                plain.write(block)
                check_expansion(path, plain.tell())
            on_failure.pop_all()
            return plain
    raise reasons[0]


def check_expansion(path: Path, size: int) -> None:
    """Raise `ValueError` at an archive bomb: images hardly compress, so a huge ratio is an attempt to fill the disk."""
    if size > SUSPECT and size > MOST_TIMES * path.stat().st_size:
        raise ValueError(f"its contents have more than {MOST_TIMES} times its size")


def _open_members(
    path: Path,
    members: Iterable[tuple[str, int]],
    reader: Callable[[], AbstractContextManager[Callable[[str], bytes]]],
) -> Files:
    """The files of an archive, given the stored names and the sizes of its members."""
    stored = {str(PurePosixPath(raw)): (raw, size) for raw, size in members if is_safe(raw)}

    def read(names: Iterable[str], largest: int = LARGEST) -> Iterator[bytes]:
        name = "its beginning"
        try:
            with reader() as content:
                for name in names:
                    raw, size = stored[name]
                    _check_size(path, name, size, largest)
                    yield content(raw)
        except DAMAGED as error:
            raise UserError(f"{path}: the archive is damaged at {name} ({one_line(error)}); copy it again") from error

    return Files(path, tuple(sorted(stored)), read)


def is_safe(name: str) -> bool:
    """Whether a member's name is relative, without `..`, and not one of a hidden file."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or "\\" in name or ":" in path.parts[0] or ".." in path.parts:
        return False
    return all(_is_shown(part) for part in path.parts)


def _is_shown(part: str) -> bool:
    return not part.startswith(".") and part != "__MACOSX"


def _check_size(path: Path, name: str, size: int, largest: int) -> None:
    if size > largest:
        raise UserError(f"{path}: {name} has {size} bytes; at most {largest} are read")
