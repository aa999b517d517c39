"""Images beside a data set: labelled examples of new classes, and pictures to be labelled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarun.data.files import Files, is_archive, open_files
from metarun.data.layouts import IMAGES, recognise
from metarun.data.pixels import CorruptImage, Pixels
from metarun.errors import SettingError, UserError


class Examples(NamedTuple):
    """Labelled images, shot by shot: the first of every class, then the second of every class that has one."""

    classes: tuple[str, ...]
    x: Tensor  # [S, C, H, W], as a network takes them
    y: Tensor  # [S], numbers of classes
    shots: tuple[int, int]  # the fewest and the most of a class


class Pictures(NamedTuple):
    files: tuple[str, ...]  # names below the folder
    x: Tensor  # [M, C, H, W]


def read_examples(place: Path, pixels: Pixels) -> Examples:
    """A folder (or archive) with a folder of images per class."""
    _existing("predict.support", place)
    try:
        files = open_files(place)
        layout = recognise(files)
    except UserError as error:
        raise UserError(f"predict.support={place}: {error}") from error
    if layout is None:
        raise SettingError("predict.support", place, "must hold a folder of images for each of two classes or more")
    classes = tuple(dict.fromkeys(entry.label for entry in layout.entries))
    by_class = groupby(layout.entries, key=lambda entry: entry.label)
    rows = sorted((shot, entry.label, entry.name) for _, group in by_class for shot, entry in enumerate(group))
    names = [name for _, _, name in rows]
    y = torch.tensor([classes.index(label) for _, label, _ in rows])
    counts = y.bincount()
    return Examples(classes, _inputs(names, files, pixels), y, (int(counts.min()), int(counts.max())))


def read_pictures(place: Path, pixels: Pixels) -> Pictures:
    """One image, or all below a folder (or in an archive)."""
    _existing("predict.query", place)
    if place.is_file() and not is_archive(place):
        files = open_files(place.parent)
        names = [place.name]
    else:
        files = open_files(place)
        names = [name for name in files.names if name.lower().endswith(IMAGES)]
    if not names:
        raise SettingError("predict.query", place, f"holds no image; endings that are read: {', '.join(IMAGES)}")
    return Pictures(tuple(names), _inputs(names, files, pixels))


def _existing(key: str, place: Path) -> Path:
    if not place.exists():
        raise SettingError(key, place, "there is no such file or folder")
    return place


def _inputs(names: Sequence[str], files: Files, pixels: Pixels) -> Tensor:
    images = []
    for name, content in zip(names, files.read(names), strict=True):
        try:
            images.append(pixels.decode(content))
        except CorruptImage as error:
            raise UserError(f"{files.place / name}: is not a readable image ({error})") from error
    return pixels.to_inputs(torch.from_numpy(np.stack(images)))
