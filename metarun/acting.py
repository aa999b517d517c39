"""Learners that carry state from step to step and gather their own data, and the places they act in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from metarun.types import Adapted, Algorithm, AssessingLearner, Batch, Params, Task

Carry = dict[str, Tensor]
"""What a learner takes along from one outer step to the next beside its meta-parameters: replay buffers, a target
network. Empty for most."""


@runtime_checkable
class CarryingLearner(Algorithm, Protocol):
    """One with state of its own between outer steps, handed in and handed back; the trainer keeps and checkpoints it.

    An outer step is  carry, theta', tasks = prepared(...);  the mean of meta_grad(theta', task) over the tasks;  the
    optimizer;  carry = settled(...). All of them are pure: what they are given stays as it is.
    """

    def carry(self, params: Params) -> Carry:
        """Before the first step."""

    def prepared(self, params: Params, carry: Carry, tasks: Task, seed: int, step: int) -> tuple[Carry, Params, Task]:
        """The carry after what the step collects, theta with the constants that the gradient needs beside it (names
        that begin with CARRIED), and what the gradient of each of the given tasks is taken on."""

    def settled(self, params: Params, carry: Carry) -> Carry:
        """After the optimizer's step, with the new theta."""

    def told(self, carry: Carry) -> dict[str, float]:
        """What a training record says of it."""


@runtime_checkable
class ExploringLearner(AssessingLearner, Protocol):
    """One that gathers its support set itself: a task is a place to act in."""

    def explorations(self, params: Params, support: Batch, steps: int) -> Iterator[Adapted]:
        """The states after 0, 1, ... `steps` pieces of its own experience, as far as the rows of `support` go."""


class Environment(Protocol):
    """What a data set of kind "control" is to a learner. A row y of an episode says which task it is: [Y] numbers, the
    last of them the task's number among those of its split. States are [..., S], what a learner sees of them [..., F],
    actions [..., A] in [-1, 1]."""

    @property
    def horizon(self) -> int:
        """Steps of a trajectory."""

    @property
    def draws(self) -> int:
        """Standard normal numbers that each trajectory of an episode brings along, for the learner to use."""

    def begin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows x of an episode -> the states that their trajectories begin in, and those numbers."""

    @property
    def start_words(self) -> int:
        """Random words that a start takes."""

    def started(self, words: NDArray[np.uint64]) -> Tensor:
        """States to begin trajectories in [..., S], from words [..., start_words]."""

    def observe(self, state: Tensor) -> Tensor:
        """What a learner sees of states."""

    def train_tasks(self) -> Tensor:
        """The rows y of all training tasks, by their numbers [G, Y]."""

    def step(self, state: Tensor, action: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next state; the reward that actor and critics learn from and the one that is shown, [...]."""
