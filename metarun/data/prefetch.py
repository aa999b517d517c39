"""Episodes of consecutive steps, drawn several steps at a time: a call of numpy costs the same for one as for sixteen.

What is returned depends on the arguments alone, as without it: only when it is drawn does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metarun.types import EpisodeSpec, Split, Task

AHEAD = 16
"""Steps that are drawn at once. More would save little: the random words themselves are then most of the time."""

Draw = Callable[[Split, int, range, range, EpisodeSpec], list[Task]]
"""split, seed, steps, tasks, size -> the tasks of each step."""


class Ahead:
    """Draws ahead once two steps in a row were asked for, which is training; single steps are drawn as they are."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.key: Any = None
        self.steps = range(0)
        self.drawn: list[Task] = []

    def __call__(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        key = split, seed, tasks, spec
        if key != self.key or step not in self.steps:
            in_a_row = key == self.key and step == self.steps.stop
            self.steps = range(step, step + (AHEAD if in_a_row else 1))
            self.key, self.drawn = key, self.draw(split, seed, self.steps, tasks, spec)
        return self.drawn[step - self.steps.start]
