"""Folders of tiny pictures for tests: each class has a colour of its own, each picture a shade of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 16


def colour_of(name: str) -> np.ndarray:
    """A colour that depends on the name only."""
    rng = np.random.default_rng(list(name.encode()))
    return rng.integers(40, 216, 3)


def picture(name: str, number: int) -> Image.Image:
    """The class's colour with a little noise, so that every picture differs and all of a class look alike."""
    rng = np.random.default_rng([number, *name.encode()])
    pixels = colour_of(name) + rng.integers(-12, 13, (SIDE, SIDE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def class_folders(folder: Path, classes: list[str], each: int, start: int = 0) -> Path:
    """A folder per class with PNGs numbered from `start`."""
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(start, start + each):
            picture(name, i).save(folder / name / f"{i:03d}.png")
    return folder
