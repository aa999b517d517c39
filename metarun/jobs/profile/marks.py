"""Copies of a run's objects whose methods are marked, so that time can be told apart without touching what runs.

A mark is a context manager by name: a stopwatch (profiling_phases.py) or a region of torch's profiler.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

from torch.profiler import record_function

from metarun.training.loop import MetaGradient, outer_step
from metarun.training.run import Observer, State, Trainer
from metarun.types import Algorithm

Value = TypeVar("Value")
Mark = Callable[[str], AbstractContextManager[Any]]
Method = Callable[..., Any]

SAMPLING, TRANSFER, OPTIMIZER = "sampling", "to the device", "optimizer"
META, PROXIMAL, MEASURES = "meta-gradient", "proximal step", "measures"
RECORDS, CHECKPOINT = "writing records", "checkpoint"

PREFIX = "metarun: "
"""How the names of regions begin in a trace."""

FORWARD = "forward"
TASK = "meta_grad"


def region(name: str) -> AbstractContextManager[Any]:
    """A mark that shows in the trace."""
    return record_function(PREFIX + name)


def marked(value: Value, names: Mapping[str, str], mark: Mark, **changed: Any) -> Value:
    """The same value with these methods inside of marks, `names` of methods -> of marks, and these fields changed.

    Its class is a subclass of the value's own: what asks for a type, and what copies with changes, works as before.
    """
    own = type(value)
    methods = {n: inside(inspect.getattr_static(own, n), name, mark) for n, name in names.items() if hasattr(own, n)}
    copy: Any = object.__new__(type(own.__name__, (own,), {**methods, "__module__": own.__module__}))
    for name, part in {**_parts(value), **changed}.items():
        object.__setattr__(copy, name, part)
    return copy


def _parts(value: Any) -> dict[str, Any]:
    """Its attributes; a class with slots has none but its fields."""
    if hasattr(value, "__dict__") or not is_dataclass(value):
        return dict(vars(value))
    return {f.name: getattr(value, f.name) for f in fields(value)}


def inside(method: Method, name: str, mark: Mark) -> Method:
    """The function, each of its calls inside of a mark."""

    @functools.wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        with mark(name):
            return method(*args, **kwargs)

    return called


def regions_of(algorithm: Algorithm) -> Algorithm:
    """The learner with a region around each of its methods, and one called `forward` around its network and loss."""
    model = marked(algorithm.model, dict.fromkeys(_methods(algorithm.model, private=False), FORWARD), region)
    loss = marked(algorithm.loss, {"__call__": FORWARD}, region)
    own = {name: name for name in _methods(algorithm, private=True)}
    return marked(algorithm, own, region, model=model, loss=loss)


def _methods(value: Any, private: bool) -> Iterator[str]:
    """Plain ones: a region around a generator would end before it is run."""
    for name in dir(type(value)):
        method = inspect.getattr_static(type(value), name)
        hidden = name.startswith("__") or (name.startswith("_") and not private)
        if inspect.isfunction(method) and not inspect.isgeneratorfunction(method) and not hidden:
            yield name


@dataclass(frozen=True)
class Loop:
    """A run's outer loop with marks around its phases."""

    trainer: Trainer
    state: State
    meta_gradient: Callable[..., MetaGradient]
    observer: Observer

    def step(self) -> None:
        outer_step(self.trainer, self.state, self.meta_gradient, self.observer)


def marked_loop(
    trainer: Trainer, state: State, meta_gradient: Callable[..., MetaGradient], observer: Observer, mark: Mark
) -> Loop:
    """The loop of these objects. Its state is one of its own, whose tensors and moments are those of `state`."""
    parts: dict[str, Any] = {
        "dataset": marked(trainer.dataset, {"episodes": SAMPLING}, mark),
        "placement": marked(trainer.placement, {"task": TRANSFER}, mark),
        "regularization": marked(trainer.regularization, {"shrink": PROXIMAL}, mark),
    }
    if trainer.measures:
        parts["measures"] = marked(trainer.measures, {"__call__": MEASURES}, mark)
    optimizer = marked(state.optimizer, {"step": OPTIMIZER, "zero_grad": OPTIMIZER}, mark)
    own, watched = (
        replace(state, optimizer=optimizer),
        marked(observer, {"on_log": RECORDS, "save_checkpoint": CHECKPOINT}, mark),
    )
    return Loop(replace(trainer, **parts), own, inside(meta_gradient, META, mark), watched)
