"""Environments with a hidden goal: tasks as rows, and episodes made of them.

Rows x of an episode are trajectories: the state in which each begins, then standard normal numbers for the learner
that acts. Rows y are the goal and its index in its split. Training goals are drawn at random, validation and test take
theirs in turn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.compute.random import SPLITS, normal, random_bits, uniform
from metarun.errors import require
from metarun.types import Batch, EpisodeSpec, Split, Task

GOAL_STREAM = 2**43
"""The step whose random words choose the goals; no training reaches it."""

NORMALS = 16
"""The `normals_per_trajectory` of each environment here."""


class Environment(Protocol):
    """A data set of kind "control", as a learner uses it.

    A row y of an episode identifies its task: [Y] numbers, the last of them the task's index in its split. States are
    [..., S], observations [..., F], actions [..., A] in [-1, 1].
    """

    @property
    def horizon(self) -> int:
        """Steps of a trajectory."""

    @property
    def normals_per_trajectory(self) -> int:
        """Standard normal numbers that an episode supplies for each trajectory, for the learner to use."""

    @property
    def words_per_state(self) -> int:
        """Random words that `random_states` takes for a state."""

    def initial_states(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows x of an episode -> the states in which their trajectories begin, and their standard normal numbers."""

    def random_states(self, words: NDArray[np.uint64]) -> Tensor:
        """States in which trajectories begin [..., S], from words [..., words_per_state]."""

    def observe(self, state: Tensor) -> Tensor:
        """The observations of states."""

    def train_tasks(self) -> Tensor:
        """The rows y of all training tasks, by their index [G, Y]."""

    def step(self, state: Tensor, action: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next state; the reward [...] for actor and critics; the reward [...] for the context and the return."""

    def idle_return(self) -> float:
        """The return of doing nothing, the chance level of the data set."""


def draw_trajectories(
    environment: Environment, rows: Tensor, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec
) -> Task:
    """Episodes of a split, whose tasks have the rows y [n, G + 1]."""
    trajectories, normals = spec.shots + spec.queries, environment.normals_per_trajectory
    words = random_bits(split, seed, step, tasks, 1 + (2 * normals + environment.words_per_state) * trajectories)
    index = uniform(words[:, 0], 0, len(rows)).astype(np.int64) if split == "train" else np.asarray(tasks)
    first, second, start = np.split(words[:, 1:].reshape(len(tasks), trajectories, -1), [normals, 2 * normals], axis=-1)
    numbers = torch.from_numpy(normal(first, second).astype(np.float32))
    x = torch.cat([environment.random_states(start), numbers], -1)
    y = rows[torch.from_numpy(index % len(rows))][:, None].expand(-1, trajectories, -1)
    parts = slice(None, spec.shots), slice(spec.shots, None)
    return Task(*(Batch(x[:, part].contiguous(), y[:, part].contiguous()) for part in parts))


def number_goals(goals: Tensor) -> Tensor:
    """Goals [n, G] -> rows y of their tasks [n, G + 1]: the goal and its index."""
    return torch.cat([goals, torch.arange(len(goals), dtype=goals.dtype)[:, None]], 1)


def goals_sha256(goals: Mapping[Split, Tensor]) -> str:
    """The hash of the goals of all splits."""
    return hashlib.sha256(b"".join(goals[split].numpy().tobytes() for split in SPLITS)).hexdigest()


def check_sizes(horizon: int, train_goals: int, val_goals: int, test_goals: int, goal_seed: int = 0) -> None:
    """Raise `SettingError` unless the settings of this name can work."""
    counts = {"horizon": horizon, "train_goals": train_goals, "val_goals": val_goals, "test_goals": test_goals}
    for name, value in counts.items():
        require(1 <= value < 2**20, name, value, "must be at least 1 and below 2^20")
    require(goal_seed >= 0, "goal_seed", goal_seed, "must be at least 0")


def split_goals(goals: Tensor, counts: Sequence[int]) -> dict[Split, Tensor]:
    """The first goals for training, the next for validation, the last for the test."""
    return dict(zip(SPLITS, goals.split(list(counts)), strict=True))
