"""Images of letters in alphabets: a small data set whose classes have groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarun.data.augment import Augmentation
from metarun.data.images import ImageData, ImageTable, Source
from metarun.data.pixels import Pixels
from metarun.types import EpisodeSpec, Task

SIDE, EACH = 8, 12
ALPHABETS = {"train": {"old/A": 4, "old/B": 3}, "val": {"old/C": 3}, "test": {"new/D": 5, "new/E": 3, "old/B": 2}}
SPEC = EpisodeSpec(ways=3, shots=2, queries=3)


def alphabets(channels: int = 1, normalize: str = "none", each: int = EACH, ink: bool = True) -> ImageData:
    """Noise, with the number of the class in the first pixel and that of the drawing in the second."""
    groups = [(split, group, n) for split, parts in ALPHABETS.items() for group, n in parts.items()]
    names = [f"{group}/{split}{i}" for split, group, n in groups for i in range(n)]
    draw = torch.Generator().manual_seed(0)
    shape = (len(names), each, channels, SIDE, SIDE)
    images = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
    images[..., 0, 0] = torch.arange(len(names), dtype=torch.uint8).view(-1, 1, 1)
    images[..., 0, 1] = torch.arange(each, dtype=torch.uint8).view(1, -1, 1)
    counts = np.full(len(names), each)
    table = ImageTable(images.flatten(0, 1), tuple(names), np.arange(len(names)) * each, counts)
    parts = np.array([split for split, _, n in groups for _ in range(n)])
    splits: Any = {s: np.flatnonzero(parts == s) for s in ("train", "val", "test")}
    source = Source(table, splits, "by hand", {}, Path())
    pixels = Pixels(SIDE, channels, "nearest", normalize=normalize, ink=ink)
    return ImageData(pixels, "none", Augmentation(), lambda verify: source)


def draw(data: Any, tasks: range = range(40), spec: EpisodeSpec = SPEC, split: Any = "test", step: int = 0) -> Task:
    return data.episodes(split, 0, step, tasks, spec)


def drawn_classes(task: Task) -> torch.Tensor:
    """Class numbers [T, rows] of support and query together."""
    return torch.cat([(b.x[:, :, 0, 0, 0] * 255).round().long() for b in task], 1)


def same(a: Task, b: Task) -> bool:
    return all(torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))
