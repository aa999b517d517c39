"""Files for tests of the data layer: written as a folder or as an archive of any kind, and what a refusal must be."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from metarun.data.files import LARGEST, Files
from metarun.errors import UserError

T = TypeVar("T")
Contents = Mapping[str, bytes]
Maker = Callable[[Path, Contents], Path]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def as_folder(path: Path, files: Contents) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def as_zip(path: Path, files: Contents, compression: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return path


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, io.BytesIO]:
    """A tar member; `fields` are those of TarInfo."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, io.BytesIO(content)


def as_tar(path: Path, files: Contents, mode: str = "w:", form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            archive.addfile(*member(name, content))
    return path


KINDS: dict[str, Maker] = {
    "folder": as_folder,
    "zip": as_zip,
    "zip, deflated": lambda path, files: as_zip(path, files, zipfile.ZIP_DEFLATED),
    "zip, lzma": lambda path, files: as_zip(path, files, zipfile.ZIP_LZMA),
    "tar": as_tar,
    "tar.gz": lambda path, files: as_tar(path, files, "w:gz"),
    "tar.bz2": lambda path, files: as_tar(path, files, "w:bz2"),
    "tar.xz": lambda path, files: as_tar(path, files, "w:xz"),
}


def in_memory(contents: Mapping[str, bytes | str]) -> Files:
    """A data set that is nowhere on a disk."""
    stored = {name: content.encode() if isinstance(content, str) else content for name, content in contents.items()}

    def read(names: Iterable[str], largest: int = LARGEST) -> Iterator[bytes]:
        return (stored[name] for name in names)

    return Files(Path("/data"), tuple(sorted(stored)), read)


def everything(folder: Path) -> dict[Path, bytes | None]:
    """All that lies below a folder, hidden files too, with its contents."""
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def attempt(action: Callable[[], T]) -> tuple[T | None, str]:
    """What it gives, or the one line that the user is told."""
    try:
        return action(), ""
    except UserError as error:
        message = str(error)
    assert len(message.splitlines()) == 1, message
    return None, message


def refusal(action: Callable[[], object]) -> str:
    """The one line that the user is told."""
    _, message = attempt(action)
    assert message, "it was not refused"
    return message
