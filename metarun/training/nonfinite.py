"""What becomes of a step whose loss or meta-gradient is not finite: the run stops, skips it, or goes back.

Going back (`train.on_nonfinite=rewind`) is to the meta-parameters and the optimizer's state of the last rewind point: a
number of outer steps that `train.checkpoint_every` divides, 0 among them, reached by a step that was taken. The step's
number goes on, so that the tasks that led there are not met again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from metarun.errors import NonFinite
from metarun.training.run import Rewinding, State, Trainer, Watcher

MOST = 3
"""Rewinds to the same point; the next non-finite step ends the run."""


def point_of(state: State, step: int) -> Rewinding:
    """Copies, which later steps do not change."""
    kept = {name: value.clone() for name, value in state.params.items()}
    total = state.rewinding.total if state.rewinding else 0
    # A step makes new tensors of what is carried, so that these stay as they are.
    return Rewinding(step, kept, copy.deepcopy(state.optimizer.state_dict()), total=total, carry=dict(state.carry))


def begin(trainer: Trainer, state: State) -> None:
    """A sitting begins: at what its checkpoint kept, or else where it is; other policies keep nothing."""
    if trainer.settings.on_nonfinite != "rewind":
        state.rewinding = None
    elif state.rewinding is None:
        state.rewinding = point_of(state, state.step)


def taken(trainer: Trainer, state: State) -> None:
    """A step was taken: where it leads to may be the next rewind point."""
    if state.rewinding is None or state.step % trainer.settings.checkpoint_every:
        return
    # A finite gradient may still be too long a step; to what that leaves there is no use in going back.
    if all(
        bool(v.isfinite().all()) for v in _tensors([state.params, state.optimizer.state_dict()["state"], state.carry])
    ):
        state.rewinding = point_of(state, state.step)


def refuse(trainer: Trainer, state: State, where: str, watcher: Watcher) -> None:
    """Keep a non-finite step away from the meta-parameters: stop the run, skip the step, or go back."""
    what = f"non-finite loss or meta-gradient {where}"
    if trainer.settings.on_nonfinite == "stop":
        raise NonFinite(what)
    told = rewind(trainer, state, what) if state.rewinding else "skipped"
    watcher.noted(f"{told}: {what}")


def rewind(trainer: Trainer, state: State, what: str) -> str:
    """Go back to the rewind point, in place, with the number of the step as it is; returns what to tell."""
    point = state.rewinding
    assert point is not None
    if point.in_a_row >= MOST:
        raise NonFinite(f"{what}, after {MOST} rewinds to step {point.step} with none past it")
    for name, value in point.params.items():
        state.params[name].copy_(value)
    state.optimizer.load_state_dict(copy.deepcopy(point.optimizer))  # torch would go on with the tensors it is given
    state.carry = dict(point.carry)
    trainer.regularization.set_weights(state.params, state.step)  # scheduled ones belong to the step, not to the point
    point.in_a_row, point.total = point.in_a_row + 1, point.total + 1
    return f"went back to the meta-parameters of step {point.step} ({point.in_a_row} of {MOST} times)"


def _tensors(value: Any) -> Iterator[Tensor]:
    """All of them in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)
