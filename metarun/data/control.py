"""Environments with a hidden goal: tasks as rows, and episodes made of them.

Rows x of an episode are trajectories: the state in which each begins, then `normals_per_trajectory` standard normal
numbers for the learner that acts. Rows y are the goal and its index in its split. Training goals are drawn at random,
validation and test take theirs in turn.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from metarun.compute.random import SPLITS, Bits, normal, random_bits, uniform
from metarun.errors import require
from metarun.types import Batch, EpisodeSpec, Kind, Split, Task

GOAL_STREAM = 2**43
"""The step whose random words choose the goals; no training comes there."""


class GoalEnvironment(ABC):
    """What the environments share: a subclass adds the rest of `Environment` (metarun/types.py)."""

    kind: ClassVar[Kind] = "control"
    normals_per_trajectory: ClassVar[int] = 16

    goals: dict[Split, Tensor]  # of each split, [n, G]

    @property
    @abstractmethod
    def words_per_state(self) -> int:
        """Random words that `random_states` takes for a state."""

    @abstractmethod
    def random_states(self, words: Bits) -> Tensor:
        """States in which trajectories begin [..., S], from words [..., words_per_state]."""

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        """Accept every size: any number of trajectories can be drawn."""
        del split, spec

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        rows, normals, width = self.tasks(split), self.normals_per_trajectory, self.words_per_state
        trajectories = spec.shots + spec.queries
        words = random_bits(split, seed, step, tasks, 1 + (2 * normals + width) * trajectories)
        index = uniform(words[:, 0], 0, len(rows)).astype(np.int64) if split == "train" else np.asarray(tasks)
        first, second, start = np.split(
            words[:, 1:].reshape(len(tasks), trajectories, -1), [normals, 2 * normals], axis=-1
        )
        numbers = torch.from_numpy(normal(first, second).astype(np.float32))
        x = torch.cat([self.random_states(start), numbers], -1)
        y = rows[torch.from_numpy(index % len(rows))][:, None].expand(-1, trajectories, -1)
        parts = slice(None, spec.shots), slice(spec.shots, None)
        return Task(*(Batch(x[:, part].contiguous(), y[:, part].contiguous()) for part in parts))

    def tasks(self, split: Split) -> Tensor:
        """Rows y of a split's tasks [n, G + 1]: the goal and its index."""
        goals = self.goals[split]
        return torch.cat([goals, torch.arange(len(goals), dtype=goals.dtype)[:, None]], 1)

    def train_tasks(self) -> Tensor:
        return self.tasks("train")

    def goals_sha256(self) -> str:
        """The hash of the goals of all splits."""
        return hashlib.sha256(b"".join(self.goals[split].numpy().tobytes() for split in SPLITS)).hexdigest()


def check_sizes(horizon: int, train_goals: int, val_goals: int, test_goals: int, goal_seed: int = 0) -> None:
    """Raise `SettingError` unless the settings of this name can work."""
    counts = {"horizon": horizon, "train_goals": train_goals, "val_goals": val_goals, "test_goals": test_goals}
    for name, value in counts.items():
        require(1 <= value < 2**20, name, value, "must be at least 1 and below 2^20")
    require(goal_seed >= 0, "goal_seed", goal_seed, "must be at least 0")


def split_goals(goals: Tensor, counts: Sequence[int]) -> dict[Split, Tensor]:
    """The first goals for training, the next for validation, the last for the test."""
    return dict(zip(SPLITS, goals.split(list(counts)), strict=True))
