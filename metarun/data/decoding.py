"""Decode image files, in parallel, into one array of bytes on disk, class by class."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import accumulate, chain, islice
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from metarun.data.cache import DecodedImages
from metarun.data.image_list import Entry
from metarun.data.pixels import DEPTHS, CorruptImage, DepthUnknown, Pixels, largest_value
from metarun.errors import UserError
from metarun.storage.progress import print_notice, track

GROUP = 64  # images that a thread decodes at a time
FLAT = 2  # of 255: an image whose numbers differ by no more shows nothing
AHEAD = 8  # groups that are read and decoded in advance

Read = Callable[[Iterable[Entry]], Iterator[Any]]
"""Entries -> the bytes of their files, or arrays [H, W, C]."""


class UnreadableImage(UserError):
    """A file that is not an image; the message names it."""


def write_images(
    file: BinaryIO, entries: Sequence[Entry], read: Read, pixels: Pixels, skip: bool = False
) -> DecodedImages:
    """Decode the entries as `write_at_depth` does. Where `pixels` has no depth and a file has numbers of 16 bits, the
    depth is the least usual one that has room for the largest number of all files."""
    try:
        return write_at_depth(file, entries, read, pixels, skip)
    except DepthUnknown:
        largest = max(map(largest_value, read(entries)))
        depth = next((d for d in DEPTHS if largest < 2**d), DEPTHS[-1])
        file.seek(0)
        file.truncate()
        decoded = write_at_depth(file, entries, read, replace(pixels, depth=depth), skip)
        return decoded._replace(notes=decoded.notes | {"depth": depth, "largest": largest})


def write_at_depth(file: BinaryIO, entries: Sequence[Entry], read: Read, pixels: Pixels, skip: bool) -> DecodedImages:
    """Decode the entries, sorted by class, into `file`. With `skip`, images that cannot be decoded are left out and
    noted; without, the first raises `UnreadableImage`."""
    skipped: list[str] = []
    counts: dict[str, int] = {}
    flat: list[str] = []
    files: list[str] = []
    with closing(_decode_groups(read(entries), pixels)) as groups:  # ends its threads, also after an error
        images = zip(entries, chain.from_iterable(groups), strict=True)
        for entry, image in track(images, len(entries), "decoding images"):
            counts.setdefault(entry.label, 0)
            if isinstance(image, CorruptImage):
                message = f"{entry.name} is not a readable image ({image})"
                if not skip:
                    raise UnreadableImage(message)
                print_notice(f"skipped: {message}")
                skipped.append(entry.name)
            else:
                file.write(image.tobytes())
                files.append(entry.name)
                if int(image.max()) - int(image.min()) <= FLAT:
                    flat.append(entry.name)
                counts[entry.label] += 1
    empty = [label for label, count in counts.items() if count == 0]
    if empty:
        raise UserError(f"class {empty[0]} has no image that can be decoded")
    sizes = list(counts.values())
    starts = list(accumulate(sizes, initial=0))[:-1]
    shape, notes = (sum(sizes), *pixels.shape), {"skipped": skipped, "flat": flat}
    return DecodedImages(shape, tuple(counts), starts, sizes, notes, files)


def _decode_groups(
    contents: Iterator[Any], pixels: Pixels
) -> Generator[list[NDArray[np.uint8] | CorruptImage], None, None]:
    """The images in order, in groups; a few groups are read and decoded in advance."""
    with ThreadPoolExecutor() as pool:
        groups = iter(lambda: list(islice(contents, GROUP)), [])
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
