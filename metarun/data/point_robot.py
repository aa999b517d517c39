r"""A point that moves to an unknown goal (Rakelly et al. 2019, arXiv 1903.08254: 'sparse-point-robot').

    s' = s + 0.1 a,  a in [-1, 1]^2,  s_0 = 0;  d = |s' - g|;  a trajectory ends after `horizon` steps and never before
    goals g = (cos t_j, sin t_j),  t_j = pi j / (n - 1),  j = 0 .. n - 1, in an order that `goal_seed` decides
    reward=dense     -d                            for training and for the test
    reward=sparse    (1 - d) 1[d <= goal_radius]   in the context and for the return of the test
                     -d                            for actor and critics in training, as published

The first `train_goals` of them are the training tasks, then `val_goals`, then `test_goals`. The published code has 80
training and 20 test goals, and none for validation. For the episodes see control.py.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from metarun.compute.random import Bits, normal, random_bits
from metarun.data import control
from metarun.errors import require
from metarun.types import EpisodeSpec, Kind, Metrics, Split, Task

REWARDS = ("dense", "sparse")
STRIDE = 0.1
STATE = 2


@dataclass(frozen=True)
class PointRobot:
    reward: str
    horizon: int
    train_goals: int
    val_goals: int
    test_goals: int
    goal_radius: float = 0.2
    goal_seed: int = 0

    kind: ClassVar[Kind] = "control"
    normals_per_trajectory: ClassVar[int] = control.NORMALS
    words_per_state: ClassVar[int] = 0

    def __post_init__(self) -> None:
        require(self.reward in REWARDS, "reward", self.reward, "choices: " + ", ".join(REWARDS))
        control.check_sizes(self.horizon, self.train_goals, self.val_goals, self.test_goals, self.goal_seed)
        require(0 < self.goal_radius < math.inf, "goal_radius", self.goal_radius, "must be above 0 and finite")

    def input_shape(self) -> tuple[int, ...]:
        return (STATE,)

    def outputs(self, ways: int) -> int:
        """The length of an action."""
        return STATE

    def check(self, split: Split, spec: EpisodeSpec) -> None:
        """Accept every size: any number of trajectories can be drawn."""

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        return control.draw_trajectories(self, self.tasks(split), split, seed, step, tasks, spec)

    def tasks(self, split: Split) -> Tensor:
        """Rows y of a split's tasks [n, G + 1]: the goal and its index."""
        return control.number_goals(self.goals[split])

    def train_tasks(self) -> Tensor:
        return self.tasks("train")

    def reference_inputs(self, count: int) -> Tensor:
        """States around the goals."""
        bits = random_bits("train", 0, control.GOAL_STREAM + 1, range(2 * count), STATE).reshape(2, count, STATE)
        return torch.from_numpy(normal(bits[0], bits[1]).astype(np.float32))

    def facts(self) -> dict[str, Any]:
        split = {"split": "half circle", "split_sha256": control.goals_sha256(self.goals)}
        return split | {"reward": self.reward, "horizon": self.horizon} | self._counts

    def idle_return(self) -> float:
        """The return of a point that never moves, the same for all goals."""
        zero, y = torch.zeros(1, STATE), self.train_tasks()[:1]
        return self.horizon * float(self.step(zero, zero, y)[2])

    def oracle(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Metrics:
        """The highest return, of a point that knows the goal: each coordinate goes towards it as fast as it can. No
        other trajectory is nearer at any step, and the nearer the more reward."""
        y = self.episodes(split, seed, step, tasks, spec).query.y[:, 0].double()
        state, total = torch.zeros(len(y), STATE, dtype=y.dtype), torch.zeros(len(y), dtype=y.dtype)
        for _ in range(self.horizon):
            state, _, shown = self.step(state, (y[:, :STATE] - state) / STRIDE, y)
            total = total + shown
        return {"return": total}

    def random_states(self, words: Bits) -> Tensor:
        return torch.zeros(*words.shape[:-1], STATE)

    def initial_states(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., :STATE], x[..., STATE:]

    def observe(self, state: Tensor) -> Tensor:
        return state

    def step(self, state: Tensor, action: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state = state + STRIDE * action.clamp(-1, 1)
        # At the goal itself the root has no derivative; none is taken of a reward.
        distance = (state - y[..., :STATE]).square().sum(-1).sqrt()
        if self.reward == "dense":
            return state, -distance, -distance
        return state, -distance, (1 - distance) * (distance <= self.goal_radius)

    @functools.cached_property
    def goals(self) -> dict[Split, Tensor]:
        count = sum(self._counts.values())
        order = np.argsort(random_bits("train", self.goal_seed, control.GOAL_STREAM, range(count), 1)[:, 0])
        angles = np.linspace(0, np.pi, count)[order]
        goals = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32))
        return control.split_goals(goals, list(self._counts.values()))

    @property
    def _counts(self) -> dict[str, int]:
        return {"train_goals": self.train_goals, "val_goals": self.val_goals, "test_goals": self.test_goals}
