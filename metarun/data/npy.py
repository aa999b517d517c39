"""Arrays of files of NumPy, which may come from anywhere: nothing is unpickled, and no file claims more than it has."""

from __future__ import annotations

import io
import math
import stat
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from metarun.data.files import check_expansion
from metarun.errors import one_line
from metarun.storage.text import shorten

LONGEST_REASON = 200  # characters of a library's message
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npz(source: Path | IO[bytes], most: int | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file by name. Raise `ValueError` with the reason if it cannot be read, if its arrays have
    more than `most` bytes, or by default if it is a bomb."""
    try:
        if isinstance(source, Path):
            check_regular(source)
        with zipfile.ZipFile(source) as archive:
            infos = archive.infolist()
            size = sum(info.file_size for info in infos)
            if most is not None and size > most:
                raise ValueError(f"its arrays have more than {most} bytes")
            if isinstance(source, Path):
                check_expansion(source, size)
            return {info.filename.removesuffix(".npy"): _read_member(archive, info) for info in infos}
    except Exception as error:  # a damaged archive can raise anything
        raise ValueError(_describe(error)) from error


def read_npy(path: Path) -> NDArray[Any]:
    """The array of an npy file. Raise `ValueError` with the reason if it cannot be read."""
    try:
        check_regular(path)
        with open(path, "rb") as file:
            return _read(file, path.stat().st_size)
    except Exception as error:
        raise ValueError(f"{path.name}: {_describe(error)}") from error


def check_regular(path: Path) -> None:
    """Raise `ValueError` for what is no file: a pipe would be waited for."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file")


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    content = archive.read(info)
    try:
        return _read(io.BytesIO(content), len(content))
    except Exception as error:
        raise ValueError(f"{one_line(info.filename)}: {_describe(error)}") from error


def _read(file: IO[bytes], size: int) -> NDArray[Any]:
    """The array of an open file of so many bytes. Memory is reserved for what is there, not for what the header has."""
    version = npy.read_magic(file)
    if version not in HEADERS:  # (3, 0) names the fields of a record beyond Latin-1
        raise ValueError(f"its format is {'.'.join(map(str, version))}; 1.0 and 2.0 are read")
    shape, _, dtype = HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which metarun does not load; save arrays of one type")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"its header has the shape {shorten(list(shape))}, for which the file is too short")
    file.seek(0)
    return np.asarray(np.load(file, allow_pickle=False))


def _describe(error: Exception) -> str:
    return shorten(one_line(error), LONGEST_REASON)
