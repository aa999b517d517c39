"""The picture of a few training episodes that `job=data` writes."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from metarun.data.pixels import Pixels
from metarun.data.torchvision import load_torchvision
from metarun.types import EpisodeSpec, Task

EPISODES_SHOWN = 3
QUERIES = 8  # of each class
GAP = 12  # pixels between support and query, and between episodes
LINE = 2  # pixels between images
SMALLEST = 42  # pixels, the least size of an image


def draw_sheet(episodes: Task, pixels: Pixels, spec: EpisodeSpec) -> Image.Image:
    """Episodes [T, ...] below each other: a row per class, support on the left, queries on the right."""
    sheets = []
    for support_x, query_x in zip(episodes.support.x, episodes.query.x, strict=True):
        support = _draw_grid(support_x, pixels, spec.ways, spec.shots)
        query = _draw_grid(query_x, pixels, spec.ways, min(spec.queries, QUERIES))
        gap = torch.full((3, support.shape[1], GAP), 255, dtype=torch.uint8)
        sheets.append(torch.cat([support, gap, query], 2))
    gap = torch.full((3, GAP, sheets[0].shape[2]), 255, dtype=torch.uint8)
    rows = [part for sheet in sheets for part in (sheet, gap)][:-1]
    return Image.fromarray(torch.cat(rows, 1).permute(1, 2, 0).numpy())


def _draw_grid(x: Tensor, pixels: Pixels, ways: int, columns: int) -> Tensor:
    """Images [S, C, H, W], ordered shot by shot -> `columns` images of each class, class n in row n."""
    shown = x.unflatten(0, (-1, ways))[:columns].transpose(0, 1).flatten(0, 1)
    scale = -(-SMALLEST // pixels.size)
    images = pixels.to_bytes(shown).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return load_torchvision().utils.make_grid(images, nrow=columns, padding=LINE, pad_value=255)
