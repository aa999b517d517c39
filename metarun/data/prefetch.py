"""Random functions, drawn for several steps at a time: one call of NumPy costs the same for one step as for sixteen.

The episodes are a function of the arguments alone; drawing them ahead changes none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarun.types import Batch, EpisodeSpec, Split, Task

AHEAD = 16
"""Steps that are drawn at once. More would save little: most of the time then goes into the random words themselves."""

Draw = Callable[[Split, int, range, range, EpisodeSpec], list[Task]]
"""split, seed, steps, tasks, size -> the tasks of each step."""


class EpisodePrefetcher:
    """Draws ahead from the second of two consecutive steps on, as in training; a single step is drawn alone."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.key: Any = None
        self.steps = range(0)
        self.drawn: list[Task] = []

    def __call__(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        key = split, seed, tasks, spec
        if key != self.key or step not in self.steps:
            consecutive = key == self.key and step == self.steps.stop
            self.steps = range(step, step + (AHEAD if consecutive else 1))
            self.key, self.drawn = key, self.draw(split, seed, self.steps, tasks, spec)
        return self.drawn[step - self.steps.start]


def as_column(values: np.ndarray) -> Tensor:
    """[..., P] float64 -> [..., P, 1] float32."""
    return torch.from_numpy(values.astype(np.float32)).unsqueeze(-1)


def split_points(x: Tensor, y: Tensor, steps: int, shots: int) -> list[Task]:
    """Points [steps T, K + Q, ...] -> the tasks of each step; the first K points are the support."""
    sides = (slice(None, shots), slice(shots, None))
    parts = [v.unflatten(0, (steps, -1))[:, :, side].unbind() for side in sides for v in (x, y)]
    return [Task(Batch(a, b), Batch(c, d)) for a, b, c, d in zip(*parts, strict=True)]
