"""A picture of episodes, for the eye: one row per class, support images on the left, queries on the right."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from metarun.data.pixels import Pixels
from metarun.data.torchvision import load_torchvision
from metarun.types import Batch, EpisodeSpec, Task

QUERIES = 8  # shown of each class
GAP = 12  # pixels between support and query, and between episodes
LINE = 2  # pixels between images
SMALLEST = 42  # pixels that an image is shown with at least


def contact_sheet(episodes: Task, spec: EpisodeSpec, pixels: Pixels) -> Image.Image:
    """Episodes [T, ...] below each other, each image as the network gets it but for its normalisation."""
    sheets = []
    for t in range(len(episodes.support.x)):
        parts = [Batch(b.x[t], b.y[t]) for b in episodes]
        columns = (spec.shots, min(spec.queries, QUERIES))
        grids = [_grid(part, pixels, spec.ways, count) for part, count in zip(parts, columns, strict=True)]
        height = grids[0].shape[1]
        sheets.append(torch.cat([grids[0], torch.full((3, height, GAP), 255, dtype=torch.uint8), grids[1]], 2))
    gap = torch.full((3, GAP, sheets[0].shape[2]), 255, dtype=torch.uint8)
    rows = [part for sheet in sheets for part in (sheet, gap)][:-1]
    return Image.fromarray(torch.cat(rows, 1).permute(1, 2, 0).numpy())


def _grid(batch: Batch, pixels: Pixels, ways: int, columns: int) -> Tensor:
    """`columns` images of each class, class n in row n; rows of the batch are ordered shot by shot."""
    shown = batch.x.unflatten(0, (-1, ways))[:columns].transpose(0, 1).flatten(0, 1)
    scale = -(-SMALLEST // pixels.size)
    images = pixels.to_bytes(shown).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return load_torchvision().utils.make_grid(images, nrow=columns, padding=LINE, pad_value=255)
