"""Where the time of the outer loop goes: each phase by a stopwatch, without a profiler, over a few real steps.

A phase that does not belong to every step (measures, records, validation, probes, checkpoints) is timed by itself and
spread over the steps between two of its turns: ms a step = ms each / every. On a GPU each phase ends when the device
has done its work; in training the phases of one step may overlap.

The loop is that of training. Its objects are copied with some methods marked: each call is inside of a mark, a context
manager by name, either the stopwatch or a region of torch's profiler.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch

from metarun.training.average import evaluate_average
from metarun.training.loop import outer_step
from metarun.training.meta_gradient import StepGradient
from metarun.training.run import Observer, State, Trainer

Value = TypeVar("Value")
Mark = Callable[[str], AbstractContextManager[Any]]

SAMPLING, TRANSFER, META, OPTIMIZER = "sampling", "to the device", "meta-gradient", "optimizer"
PROXIMAL, REST, MEASURES, RECORDS = "proximal step", "rest of the step", "measures", "writing records"
CHECKPOINT, VALIDATION, PROBES = "checkpoint", "validation", "probes"

EVERY_STEP = (SAMPLING, TRANSFER, META, OPTIMIZER, PROXIMAL, REST)
NOT_TRAINING = (VALIDATION, PROBES)
"""Reported, but no overhead of the loop: how often they run is the user's choice."""

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
    """Seconds by name, of one lap."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the block's seconds to those of `name`."""
        start = self.now()
        yield
        self.spent[name] = self.spent.get(name, 0.0) + self.now() - start

    def now(self) -> float:
        """Seconds, once the device has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    def lap(self, action: Callable[[], Any]) -> dict[str, float]:
        """Seconds of each phase of the action; `REST` is the time outside of all of them."""
        self.spent, start = {}, self.now()
        action()
        whole = self.now() - start
        return self.spent | {REST: whole - sum(self.spent.values())}

    def laps(self, action: Callable[[], Any], count: int, seconds: float) -> list[dict[str, float]]:
        """At least `count` laps, and more until the time has passed: ten steps of a millisecond are too few."""
        found: list[dict[str, float]] = []
        end = self.now() + seconds
        while len(found) < count or self.now() < end:
            found.append(self.lap(action))
        return found


class Loop(NamedTuple):
    """The arguments of `outer_step`."""

    trainer: Trainer
    state: State
    meta_gradient: StepGradient
    observer: Observer

    def step(self) -> None:
        outer_step(*self)


def add_marks(value: Value, names: Mapping[str, str], mark: Mark, **changed: Any) -> Value:
    """A copy whose methods are inside of marks, `names` of methods -> of marks, and whose fields are `changed`.

    Its class is a subclass of the value's own: what asks for a type, and what copies with changes, works as before.
    """
    own: Any = type(value)
    methods = {n: wrap_function(inspect.getattr_static(own, n), name, mark) for n, name in names.items()}
    copied = copy.copy(value)
    subclass = type(own.__name__, (own,), {**methods, "__module__": own.__module__, "__slots__": ()})
    for name, part in {"__class__": subclass, **changed}.items():
        object.__setattr__(copied, name, part)
    return copied


def wrap_function(method: Callable[..., Any], name: str, mark: Mark) -> Callable[..., Any]:
    """The function, each of its calls inside of a mark."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with mark(name):
            return method(*args, **kwargs)

    return call


def mark_loop(
    trainer: Trainer, state: State, meta_gradient: StepGradient, observer: Observer, mark: Mark, **settings: Any
) -> Loop:
    """The loop with marks around its phases, and with some other settings of `train`. Its state is one of its own,
    whose tensors and moments are those of `state`."""
    parts: dict[str, Any] = {
        "settings": replace(trainer.settings, **settings),
        "dataset": add_marks(trainer.dataset, {"episodes": SAMPLING}, mark),
        "placement": add_marks(trainer.placement, {"move_task": TRANSFER}, mark),
        "regularization": add_marks(trainer.regularization, {"shrink_outer": PROXIMAL}, mark),
    }
    if trainer.measures:
        parts["measures"] = add_marks(trainer.measures, {"__call__": MEASURES}, mark)
    optimizer = add_marks(state.optimizer, {"step": OPTIMIZER, "zero_grad": OPTIMIZER}, mark)
    observed = add_marks(observer, {"on_log": RECORDS, "save_checkpoint": CHECKPOINT}, mark)
    own = replace(state, optimizer=optimizer)
    return Loop(replace(trainer, **parts), own, wrap_function(meta_gradient, META, mark), observed)


def time_phases(
    trainer: Trainer, state: State, meta_gradient: StepGradient, observer: Observer, steps: int
) -> list[Phase]:
    """Time every phase of a run with these settings; trains `state` on by a few steps."""
    watch, settings = Stopwatch(trainer.placement.device), trainer.settings
    plain = mark_loop(trainer, state, meta_gradient, observer, watch, log_every=NEVER, on_nonfinite="skip")
    logging = plain._replace(trainer=replace(plain.trainer, settings=replace(plain.trainer.settings, log_every=1)))
    laps = watch.laps(plain.step, steps, LONG_ENOUGH)
    logged = watch.laps(logging.step, min(steps, LOGGED_STEPS), 0.0)
    saving = [watch.lap(lambda: observer.save_checkpoint(state)) for _ in range(CHECKPOINTS)]
    validate = functools.partial(evaluate_average, trainer.validate, state.params, state.average)
    seconds = {name: _typical(laps, name) for name in EVERY_STEP}
    # What else a logged step does, such as to clone the weights, counts as measures.
    measures = _typical(logged, MEASURES) + max(0.0, _typical(logged, REST) - seconds[REST])
    phases = [
        *(Phase(name, seconds[name], 1) for name in EVERY_STEP),
        Phase(MEASURES, measures, settings.log_every),
        Phase(RECORDS, _typical(logged, RECORDS), settings.log_every),
        Phase(CHECKPOINT, _typical(saving, REST), settings.checkpoint_every),
        Phase(VALIDATION, watch.lap(validate)[REST], settings.eval_every),
    ]
    if probe := trainer.probe:
        rates = trainer.last_rates(state)
        phases.append(Phase(PROBES, watch.lap(lambda: probe(state.params, rates))[REST], trainer.probe_every))
    return [phase for phase in phases if phase.seconds > 0]


def _typical(laps: list[dict[str, float]], name: str) -> float:
    """The median; of sampling the mean, since tasks may be drawn for several steps at once: the median would be that of
    the steps that find them drawn."""
    average = statistics.fmean if name == SAMPLING else statistics.median
    return average(lap.get(name, 0.0) for lap in laps)


def describe_phases(phases: list[Phase], tasks: int) -> dict[str, Any]:
    """The phases with their shares of all the time, and what a training step takes, validation and probes aside."""
    whole = sum(phase.per_step for phase in phases)
    training = {phase.name: phase.per_step for phase in phases if phase.name not in NOT_TRAINING}
    step = sum(training.values())
    rows = [
        {
            "name": phase.name,
            "milliseconds": 1e3 * phase.seconds,
            "every": phase.every,
            "milliseconds_per_step": 1e3 * phase.per_step,
            "share": phase.per_step / whole,
            "training": phase.name in training,
        }
        for phase in phases
    ]
    return {
        "phases": rows,
        "step_milliseconds": 1e3 * step,
        "tasks_per_second": tasks / step,
        "outside_share": 1 - training[META] / step,
    }
