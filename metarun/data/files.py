"""Where files lie: a folder, a zip or a tar archive, read in place.

Nothing is ever extracted: members with an absolute name or with `..`, links and devices are left out, so that no name
in an archive can reach another folder. Hidden files and what macOS adds to archives are left out as well.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import os
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
SUSPECT = 1 << 28  # bytes of what an archive holds, from which on its compression is looked at
MOST_TIMES = 100
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
        """`UserError` at a file that cannot be read, or that has more than `largest` bytes."""


class Files(NamedTuple):
    """Names relative to `place`, sorted, and how to read them."""

    place: Path
    names: tuple[str, ...]
    read: Read  # the contents, in the order asked for


def user_path(text: str) -> Path:
    """A path as it is typed, with ~ for the home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # nobody's home
        return Path(text)


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def open_files(place: Path) -> Files:
    """The files of a folder (with all below it) or of an archive; `UserError` where it cannot be read."""
    if place.is_dir():
        return _from_folder(place)
    try:
        return _from_zip(place) if zipfile.is_zipfile(place) else _from_tar(place)
    except DAMAGED as error:
        raise UserError(f"{place}: not a readable zip or tar archive ({one_line(error)})") from error


def fingerprint(place: Path) -> str:
    """Changes when a file of the folder (or the archive itself) is added, removed, renamed or written."""
    stats = [("", place.stat())] if place.is_file() else list(_walk(place))
    lines = (f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in sorted(stats))
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _from_folder(place: Path) -> Files:
    def read(names: Iterable[str], largest: int = LARGEST) -> Iterator[bytes]:
        for name in names:
            try:
                _refuse_huge(place, name, (place / name).stat().st_size, largest)
                yield (place / name).read_bytes()
            except OSError as error:
                raise UserError(f"{place / name}: cannot be read ({error.strerror})") from error

    return Files(place, tuple(sorted(name for name, _ in _walk(place))), read)


def _walk(place: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every regular file below the folder with its stat; links to folders are followed once."""
    seen: set[str] = set()
    pending = [""]
    while pending:
        below = pending.pop()
        folder = place / below
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
            except OSError:  # a link that leads nowhere
                continue


def _from_zip(place: Path) -> Files:
    with zipfile.ZipFile(place) as archive:
        infos = archive.infolist()
        members = [(i.filename, i.file_size) for i in infos if not i.is_dir() and not _is_zipped_link(i)]
    refuse_bomb(place, sum(size for _, size in members))

    @contextlib.contextmanager
    def reader() -> Iterator[Callable[[str], bytes]]:
        with zipfile.ZipFile(place) as archive:
            yield archive.read

    return _from_members(place, members, reader)


def _from_tar(place: Path) -> Files:
    plain = _uncompressed(place)

    def opened() -> tarfile.TarFile:
        if plain is None:
            return tarfile.open(place, "r:")
        plain.seek(0)
        return tarfile.open(fileobj=plain, mode="r:")

    @contextlib.contextmanager
    def reader() -> Iterator[Callable[[str], bytes]]:
        with opened() as archive:
            infos = {m.name: m for m in archive.getmembers() if m.isreg()}  # tarfile's own search reads all names
            yield lambda raw: archive.extractfile(infos[raw]).read()  # type: ignore[union-attr]

    if plain is not None:
        weakref.finalize(reader, plain.close)
    with opened() as archive:
        members = [(m.name, m.size) for m in archive.getmembers() if m.isreg()]
        _refuse_open_end(archive)
    return _from_members(place, members, reader)


def _uncompressed(place: Path) -> IO[bytes] | None:
    """A compressed tar without its compression, in which reading here and there is quick; None for a plain one."""
    openers: dict[str, Any] = {"": None, "gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
    reasons = []
    for compression, opener in openers.items():
        try:
            tarfile.open(place, f"r:{compression}").close()  # type: ignore[call-overload]
        except tarfile.ReadError as error:
            reasons.append(error)
            continue
        if opener is None:
            return None
        with opener(place) as source, contextlib.ExitStack() as on_failure:
            plain = on_failure.enter_context(tempfile.TemporaryFile())
            while block := source.read(1 << 20):
                plain.write(block)
                refuse_bomb(place, plain.tell())
            on_failure.pop_all()
            return plain
    raise reasons[0]


def refuse_bomb(place: Path, size: int) -> None:
    """Images hardly get smaller in an archive; one that becomes hundreds of times larger was made to fill the disk."""
    if size > SUSPECT and size > MOST_TIMES * place.stat().st_size:
        raise ValueError(f"unpacked it has more than {MOST_TIMES} times its size")


def _refuse_open_end(archive: tarfile.TarFile) -> None:
    """tarfile takes a damaged header, and the end of a file that was cut short, for the archive's end."""
    file: Any = archive.fileobj
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it breaks off after {len(archive.getmembers())} members")


def _from_members(
    place: Path,
    members: Iterable[tuple[str, int]],
    reader: Callable[[], AbstractContextManager[Callable[[str], bytes]]],
) -> Files:
    """An archive's files, given the names and sizes of its members as they are stored."""
    stored = {str(PurePosixPath(raw)): (raw, size) for raw, size in members if is_safe(raw)}

    def read(names: Iterable[str], largest: int = LARGEST) -> Iterator[bytes]:
        at = "its beginning"
        try:
            with reader() as content:
                for at in names:
                    raw, size = stored[at]
                    _refuse_huge(place, at, size, largest)
                    yield content(raw)
        except DAMAGED as error:
            raise UserError(f"{place}: damaged at {at} ({one_line(error)})") from error

    return Files(place, tuple(sorted(stored)), read)


def is_safe(name: str) -> bool:
    """Whether a member's name stays below its archive, and is a file that a person put there."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or "\\" in name or ":" in path.parts[0] or ".." in path.parts:
        return False
    return all(_is_shown(part) for part in path.parts)


def _is_shown(part: str) -> bool:
    return not part.startswith(".") and part != "__MACOSX"


def _is_zipped_link(info: zipfile.ZipInfo) -> bool:
    return (info.external_attr >> 16) & 0o170000 == 0o120000


def _refuse_huge(place: Path, name: str, size: int, largest: int) -> None:
    if size > largest:
        raise UserError(f"{place}: {name} has {size} bytes, more than {largest} that such a file may have")
