r"""Replay buffers of many tasks, as pure functions of a learner's state: what is given stays as it is.

    replay      [G, capacity, W]   rows that actor and critics learn from; a ring, the oldest row is overwritten
    written     [G]                rows ever written to each
    recent      [G, R, W]          rows of a task's latest collection alone, that contexts are drawn from

Symbols: G training tasks, W numbers in a row. Rows are drawn uniformly and with replacement.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metarun.types import LearnerState


def init_buffers(tasks: int, capacity: int, recent: int, width: int) -> LearnerState:
    return {
        "replay": torch.zeros(tasks, capacity, width),
        "written": torch.zeros(tasks, dtype=torch.int64),
        "recent": torch.zeros(tasks, recent, width),
    }


def add(state: LearnerState, which: Tensor, rows: Tensor) -> LearnerState:
    """Write rows [n, R, W] to the rings of n different tasks."""
    capacity = state["replay"].shape[1]
    replay, written, first = state["replay"].clone(), state["written"].clone(), max(0, rows.shape[1] - capacity)
    offsets = torch.arange(first, rows.shape[1], device=rows.device)
    at = (written[which][:, None] + offsets) % capacity
    replay[which[:, None], at] = rows[:, first:]
    written[which] += rows.shape[1]
    return state | {"replay": replay, "written": written}


def replace_recent(state: LearnerState, which: Tensor, rows: Tensor) -> LearnerState:
    """Replace these tasks' recent rows by the rows [n, R, W]."""
    recent = state["recent"].clone()
    recent[which] = rows
    return state | {"recent": recent}


def sample(state: LearnerState, which: Tensor, uniforms: Tensor) -> Tensor:
    """A row of a task's ring for each number in [0, 1): [T], [T, B] -> [T, B, W]."""
    size = state["written"][which].clamp(max=state["replay"].shape[1])
    return _sample(state["replay"], which, uniforms, size)


def sample_recent(state: LearnerState, which: Tensor, uniforms: Tensor) -> Tensor:
    """Sample from the recent rows, like `sample`."""
    return _sample(state["recent"], which, uniforms, torch.full_like(which, state["recent"].shape[1]))


def _sample(rows: Tensor, which: Tensor, uniforms: Tensor, size: Tensor) -> Tensor:
    # A number just below 1 may be rounded up to it in single precision.
    index = torch.minimum((uniforms * size[:, None]).long(), size[:, None] - 1)
    return rows[which[:, None], index]
