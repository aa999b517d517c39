"""Files become one array of bytes on disk: decoded in parallel, class after class."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain, islice
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from metarun.data.cache import Decoded
from metarun.data.layouts import Entry
from metarun.data.pixels import CorruptImage, Pixels
from metarun.errors import UserError
from metarun.storage.progress import print_notice, track

TOGETHER = 64  # images that a thread decodes before it hands them over
AHEAD = 8  # such groups that may be read before they are decoded

Read = Callable[[Iterable[Entry]], Iterator[Any]]


class Unreadable(UserError):
    """One of the files is no image."""


def write_images(file: BinaryIO, entries: Sequence[Entry], read: Read, pixels: Pixels, skip: bool = False) -> Decoded:
    """Decode the entries (sorted by class) into `file`; notes name those that are no images, if allowed."""
    skipped: list[str] = []
    counts: dict[str, int] = {}
    with closing(_decoded_groups(read(entries), pixels)) as groups:  # its threads end here, also after an error
        images = zip(entries, chain.from_iterable(groups), strict=True)
        for entry, image in track(images, len(entries), "decoding images"):
            counts.setdefault(entry.label, 0)
            if isinstance(image, CorruptImage):
                _skip(entry.name, image, skip, skipped)
            else:
                file.write(image.tobytes())
                counts[entry.label] += 1
    empty = [label for label, count in counts.items() if count == 0]
    if empty:
        raise UserError(f"class {empty[0]} has no image that can be decoded")
    sizes = list(counts.values())
    starts = [sum(sizes[:c]) for c in range(len(sizes))]
    return Decoded((sum(sizes), *pixels.shape), tuple(counts), starts, sizes, {"skipped": skipped})


def _decoded_groups(
    contents: Iterator[Any], pixels: Pixels
) -> Generator[list[NDArray[np.uint8] | CorruptImage], None, None]:
    """The images in order; a few groups are read and decoded ahead of the one that is handed out."""
    with ThreadPoolExecutor() as pool:
        groups = iter(lambda: list(islice(contents, TOGETHER)), [])
        pending = deque(pool.submit(_decode_group, group, pixels) for group in islice(groups, AHEAD))
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(_decode_group, group, pixels) for group in islice(groups, 1))


def _decode_group(group: Sequence[Any], pixels: Pixels) -> list[NDArray[np.uint8] | CorruptImage]:
    decoded: list[NDArray[np.uint8] | CorruptImage] = []
    for content in group:
        try:
            decoded.append(pixels.decode(content))
        except CorruptImage as error:
            decoded.append(error)
    return decoded


def _skip(name: str, error: CorruptImage, allowed: bool, skipped: list[str]) -> None:
    message = f"{name} is not a readable image ({error})"
    if not allowed:
        raise Unreadable(message)
    print_notice(f"skipped: {message}")
    skipped.append(name)
