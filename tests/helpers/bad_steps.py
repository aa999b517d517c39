"""Sinusoids with an infinite number in one task of given training steps, for the tests of what a run does then."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from metarun.data.sinusoid import Sinusoid
from metarun.types import Batch, EpisodeSpec, Split, Task

CHOSEN = ["trusted_modules=[helpers]", "data._target_=helpers.bad_steps.BadSteps"]
TASK = 1


@dataclass(frozen=True)
class BadSteps(Sinusoid):
    bad: tuple[int, ...] = ()
    ended: int | None = None  # SIGTERM comes during this step

    def episodes(self, split: Split, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        support, query = super().episodes(split, seed, step, tasks, spec)
        if split != "train":
            return Task(support, query)
        if step == self.ended:
            os.kill(os.getpid(), signal.SIGTERM)
        if step in self.bad and TASK in tasks:
            x = support.x.clone()
            x[TASK - tasks.start] = float("inf")
            support = Batch(x, support.y)
        return Task(support, query)


def bad(*steps: int, ended: int | None = None) -> list[str]:
    """The overrides that choose it."""
    return [*CHOSEN, f"+data.bad={list(steps)}", f"+data.ended={'null' if ended is None else ended}"]
