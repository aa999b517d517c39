"""Steps whose loss or meta-gradient is not finite: stop the run, skip the step, or rewind (`train.on_nonfinite`).

A rewind goes back to the meta-parameters, their average and the optimizer's state of the last rewind point: an outer
step that `train.checkpoint_every` divides, 0 among them, and that ended finite. The step number goes on, so that the
run does not meet the same tasks again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from metarun.compute.distributed import ProcessGroup
from metarun.errors import NonFinite
from metarun.training.meta_gradient import MetaGradient
from metarun.training.run import Observer, RewindPoint, State, Trainer

MOST_REWINDS = 3
"""To the same point; the next non-finite step ends the run."""


def locate_nonfinite(found: MetaGradient, processes: ProcessGroup) -> str:
    """Name the first task with a NaN or an infinity, and how many more have one."""
    rows = [g.flatten(1) if g.ndim > 1 else g[:, None] for g in found.grads.values()]
    finite = torch.stack([r.isfinite().all(1) for r in rows]).all(0)
    finite = processes.gather({"": finite}, len(found.metrics["loss"]))[""] & found.metrics["loss"].isfinite()
    tasks = torch.nonzero(~finite).flatten().tolist()
    if not tasks:
        return "the penalty or the mean over tasks"
    return f"task {tasks[0]}" + (f" (and {len(tasks) - 1} more of {len(finite)} tasks)" if len(tasks) > 1 else "")


def handle_nonfinite(trainer: Trainer, state: State, where: str, observer: Observer) -> None:
    """Keep a non-finite step away from the meta-parameters, as `train.on_nonfinite` says."""
    task, bracket, others = where.partition(" (")
    message = f"non-finite loss or meta-gradient at step {state.step}, {task}, seed {trainer.seed}{bracket}{others}"
    if trainer.settings.on_nonfinite == "stop":
        raise NonFinite(message)
    done = rewind(trainer, state, message) if state.rewinding else "skipped"
    observer.notify(f"{done}: {message}")


def start_rewinding(trainer: Trainer, state: State) -> None:
    """At the start of a sitting: keep the checkpoint's rewind point, or make one here, if the policy is to rewind."""
    if trainer.settings.on_nonfinite != "rewind":
        state.rewinding = None
    elif state.rewinding is None:
        state.rewinding = make_rewind_point(state, state.step)


def make_rewind_point(state: State, step: int) -> RewindPoint:
    """Copy what a rewind restores."""
    params = {name: value.clone() for name, value in state.params.items()}
    total = state.rewinding.total if state.rewinding else 0
    optimizer = copy.deepcopy(state.optimizer.state_dict())
    # An outer step makes new tensors of the learner's state and of the average, so that these stay as they are.
    return RewindPoint(step, params, optimizer, total=total, carry=dict(state.carry), average=state.average)


def update_rewind_point(trainer: Trainer, state: State) -> None:
    """After a step: make the next rewind point if it is due and all is finite."""
    if state.rewinding is None or state.step % trainer.settings.checkpoint_every:
        return
    # A finite gradient may still be too long a step: a rewind to what that leaves would not help.
    optimizer = state.optimizer.state_dict()["state"]
    if all(bool(v.isfinite().all()) for v in _tensors([state.params, optimizer, state.carry])):
        state.rewinding = make_rewind_point(state, state.step)


def rewind(trainer: Trainer, state: State, message: str) -> str:
    """Restore the rewind point in place, but for the step number; return a description. Raise `NonFinite` after
    MOST_REWINDS to the same point."""
    point = state.rewinding
    assert point is not None
    if point.in_a_row >= MOST_REWINDS:
        raise NonFinite(f"{message}, after {MOST_REWINDS} rewinds to step {point.step} with none past it")
    for name, value in point.params.items():
        state.params[name].copy_(value)
    state.optimizer.load_state_dict(copy.deepcopy(point.optimizer))  # torch would go on with the tensors it is given
    state.carry, state.average = dict(point.carry), point.average
    trainer.regularization.set_weights(state.params, state.step)  # scheduled ones belong to the step, not to the point
    point.in_a_row, point.total = point.in_a_row + 1, point.total + 1
    return f"went back to the meta-parameters of step {point.step} ({point.in_a_row} of {MOST_REWINDS} times)"


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)
