"""Read torch.save's files of unknown origin: tensors and plain containers alone, none larger than its file."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SMALL = 1 << 26  # bytes of tensors that a file may have whatever its size


def load_tensors(path: Path) -> Any:
    """The stored containers, on the CPU. Raise an error of some kind for a damaged file, `ValueError` for tensors that
    are not plain numbers in memory (sparse, quantized, complex), and for more bytes than the file has."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    size = path.stat().st_size
    if zipfile.is_zipfile(path):  # else a file of torch before 1.6, which holds its tensors as they are
        with zipfile.ZipFile(path) as archive:  # torch stores tensors uncompressed, so that none inflates
            if sum(member.file_size for member in archive.infolist()) > size:
                raise ValueError("it holds more bytes than it has")
            if archive.testzip() is not None:  # torch itself does not verify checksums
                raise ValueError("a checksum is wrong")
    stored = torch.load(path, weights_only=True, map_location="cpu")
    sizes = {}
    for tensor in _tensors(stored):
        dense = tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_nested or tensor.is_complex())
        if not dense or tensor.device.type != "cpu":
            raise ValueError("it holds a tensor of a kind that metarun does not read")
        same = tensor.data_ptr(), tensor.shape, tensor.stride()  # weights that several layers share count once
        sizes[same] = tensor.numel() * tensor.element_size()
    if sum(sizes.values()) > max(size, SMALL):  # one stored number may be all of a tensor, by strides of 0
        raise ValueError("its tensors have more bytes than it has")
    return stored


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, (list, tuple, set)):
        for inner in value:
            yield from _tensors(inner)
