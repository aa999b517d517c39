"""What the places to act in have in common: tasks as rows, and episodes made of them.

An episode's rows x are trajectories: the state that each begins in, and `draws` standard normal numbers for whoever
acts; its rows y are the goal and its number in its split. Training tasks are drawn; validation and test meet the goals
in turn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarun.compute.random import SPLITS, Bits, normal, random_bits, uniform
from metarun.errors import require
from metarun.types import Batch, Environment, EpisodeSpec, Split, Task


def check_counts(place: Any) -> None:
    """Of steps and of goals."""
    for name in ("horizon", "train_goals", "val_goals", "test_goals"):
        value = getattr(place, name)
        require(1 <= value < 2**20, name, value, "must be at least 1 and below 2^20")
    require(place.goal_seed >= 0, "goal_seed", place.goal_seed, "must be at least 0")


def numbered(goals: Tensor) -> Tensor:
    """Goals [n, G] -> rows y of their tasks [n, G + 1]."""
    return torch.cat([goals, torch.arange(len(goals), dtype=goals.dtype)[:, None]], 1)


def shared_out(goals: Tensor, counts: Sequence[int]) -> dict[Split, Tensor]:
    """The first of them to training, then to validation, then to the test."""
    return dict(zip(SPLITS, goals.split(list(counts)), strict=True))


def digest(goals: Mapping[Split, Tensor]) -> str:
    """sha256 of the goals of all splits."""
    return hashlib.sha256(b"".join(goals[split].numpy().tobytes() for split in SPLITS)).hexdigest()


def episodes(
    place: Environment, rows: Tensor, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec
) -> Task:
    """Of the tasks with these rows y, those of a split."""
    counts, width = (spec.shots, spec.queries), 2 * place.draws + place.start_words
    words = random_bits(split, seed, step, tasks, 1 + width * sum(counts))
    chosen = uniform(words[:, 0], 0, len(rows)).astype(np.int64) if split == "train" else np.asarray(tasks)
    y = rows[torch.from_numpy(chosen % len(rows))]
    parts = np.split(words[:, 1:], [width * counts[0]], axis=1)
    return Task(*(_batch(place, part, count, y) for part, count in zip(parts, counts, strict=True)))


def _batch(place: Environment, words: Bits, count: int, y: Tensor) -> Batch:
    bits = words.reshape(len(words), count, -1)
    first, second, start = np.split(bits, [place.draws, 2 * place.draws], axis=-1)
    numbers = torch.from_numpy(normal(first, second).astype(np.float32))
    return Batch(torch.cat([place.started(start), numbers], -1), y[:, None].expand(-1, count, -1).clone())
