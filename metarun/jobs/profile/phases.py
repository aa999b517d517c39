"""Where the time of the outer loop goes: each phase by a stopwatch, without a profiler, over a few real steps.

A phase that does not belong to every step (measures, records, validation, probes, checkpoints) is taken by itself and
spread over the steps between two of its turns: ms a step = ms each / every. On a GPU each phase ends when the device
has done its work; in training the phases of one step may overlap.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from metarun.jobs.profile.marks import (
    CHECKPOINT,
    MEASURES,
    META,
    OPTIMIZER,
    PROXIMAL,
    RECORDS,
    SAMPLING,
    TRANSFER,
    Loop,
    marked_loop,
)
from metarun.training.loop import MetaGradient
from metarun.training.run import Observer, State, Trainer

REST, VALIDATION, PROBES = "rest of the step", "validation", "probes"
EVERY_STEP = (SAMPLING, TRANSFER, META, OPTIMIZER, PROXIMAL, REST)
NOT_TRAINING = (VALIDATION, PROBES)
"""What is told, but is no overhead of the loop: how often it runs is the user's choice."""

BURSTS = (SAMPLING,)
"""What may be done for several steps at once, so that its median would be that of the steps without it."""

NEVER = 2**62
LONG_ENOUGH = 1.0  # seconds of steps
LOGGED_STEPS = 5  # at most, since measures may take long
CHECKPOINTS = 3


class Phase(NamedTuple):
    """One line of the table."""

    name: str
    seconds: float  # of one turn, the median (of sampling the mean)
    every: int  # outer steps

    @property
    def per_step(self) -> float:
        return self.seconds / self.every


class Stopwatch:
    """Seconds by name since the last `lap`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent: dict[str, float] = {}
        self.started = 0.0

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.spent[name] = self.spent.get(name, 0.0) + self.now() - start

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    def lap(self, action: Callable[[], Any]) -> dict[str, float]:
        """Seconds of each phase of the action, with what none of them has."""
        self.spent, start = {}, self.now()
        action()
        whole = self.now() - start
        return self.spent | {REST: whole - sum(self.spent.values())}


def loop_phases(
    trainer: Trainer, state: State, meta_gradient: Callable[..., MetaGradient], observer: Observer, steps: int
) -> list[Phase]:
    """Every phase of a run with these settings; trains `state` on by a few steps."""
    watch = Stopwatch(trainer.placement.device)
    loop = marked_loop(never_logging(trainer), state, meta_gradient, observer, watch)
    plain = laps(watch, loop, steps, LONG_ENOUGH)
    found = [Phase(name, (_mean if name in BURSTS else _median)(plain, name), 1) for name in EVERY_STEP]
    found += _logged(loop, watch, trainer, min(steps, LOGGED_STEPS), found[-1].seconds)
    found += _occasional(trainer, state, observer, watch)
    return [phase for phase in found if phase.seconds > 0]


def never_logging(trainer: Trainer) -> Trainer:
    """With steps that are steps only, and none that ends the run."""
    settings = dataclasses.replace(trainer.settings, log_every=NEVER, on_nonfinite="skip")
    return dataclasses.replace(trainer, settings=settings)


def _logged(loop: Loop, watch: Stopwatch, trainer: Trainer, steps: int, plain_rest: float) -> list[Phase]:
    """What a step that is logged has beyond the others: a clone of the weights and the like count as measures."""
    settings = dataclasses.replace(loop.trainer.settings, log_every=1)
    logging = dataclasses.replace(loop, trainer=dataclasses.replace(loop.trainer, settings=settings))
    logged = laps(watch, logging, steps, 0.0)
    measures = _median(logged, MEASURES) + max(0.0, _median(logged, REST) - plain_rest)
    every = trainer.settings.log_every
    return [Phase(MEASURES, measures, every), Phase(RECORDS, _median(logged, RECORDS), every)]


def _occasional(trainer: Trainer, state: State, observer: Observer, watch: Stopwatch) -> list[Phase]:
    """Validation and probes once (they are long), checkpoints a few times."""
    settings, probe = trainer.settings, trainer.probe
    validation = watch.lap(lambda: trainer.validate(state.params))[REST]
    probing = watch.lap(lambda: probe(state.params))[REST] if probe else 0.0
    saving = [watch.lap(lambda: observer.save_checkpoint(state)) for _ in range(CHECKPOINTS)]
    return [
        Phase(CHECKPOINT, _median(saving, REST), settings.checkpoint_every),
        Phase(VALIDATION, validation, settings.eval_every),
        Phase(PROBES, probing, trainer.probe_every),
    ]


def laps(watch: Stopwatch, loop: Loop, steps: int, seconds: float) -> list[dict[str, float]]:
    """So many steps at least, and more until the time has passed: of steps of a millisecond ten say little."""
    found: list[dict[str, float]] = []
    end = watch.now() + seconds
    while len(found) < steps or watch.now() < end:
        found.append(watch.lap(loop.step))
    return found


def _median(found: list[dict[str, float]], name: str) -> float:
    return statistics.median(lap.get(name, 0.0) for lap in found)


def _mean(found: list[dict[str, float]], name: str) -> float:
    return statistics.fmean(lap.get(name, 0.0) for lap in found)


def step_seconds(phases: list[Phase]) -> float:
    """Of a training step with all that belongs to it, validation and probes aside."""
    return sum(phase.per_step for phase in phases if phase.name not in NOT_TRAINING)


def outside_share(phases: list[Phase]) -> float:
    """The part of a training step that is not the meta-gradient, validation and probes aside."""
    return 1 - sum(phase.per_step for phase in phases if phase.name == META) / step_seconds(phases)
