r"""Replay buffers of many tasks, as pure functions of a carry: what is given stays as it is.

    replay      [G, capacity, W]   rows that actor and critics learn from; a ring, the oldest row is overwritten
    written     [G]                rows ever written to each
    recent      [G, R, W]          rows of a task's latest collection alone, that contexts are drawn from

Symbols: G training tasks, W numbers in a row. Rows are drawn uniformly and with replacement.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metarun.types import LearnerState


def empty(tasks: int, capacity: int, recent: int, width: int) -> LearnerState:
    return {
        "replay": torch.zeros(tasks, capacity, width),
        "written": torch.zeros(tasks, dtype=torch.int64),
        "recent": torch.zeros(tasks, recent, width),
    }


def added(carry: LearnerState, which: Tensor, rows: Tensor) -> LearnerState:
    """With rows [n, R, W] written to the rings of n different tasks."""
    capacity = carry["replay"].shape[1]
    replay, written, first = carry["replay"].clone(), carry["written"].clone(), max(0, rows.shape[1] - capacity)
    offsets = torch.arange(first, rows.shape[1], device=rows.device)
    at = (written[which][:, None] + offsets) % capacity
    replay[which[:, None], at] = rows[:, first:]
    written[which] += rows.shape[1]
    return carry | {"replay": replay, "written": written}


def renewed(carry: LearnerState, which: Tensor, rows: Tensor) -> LearnerState:
    """With these tasks' recent rows replaced by all of the rows [n, R, W]."""
    recent = carry["recent"].clone()
    recent[which] = rows
    return carry | {"recent": recent}


def drawn(carry: LearnerState, which: Tensor, uniforms: Tensor) -> Tensor:
    """A row of a task's ring for each number in [0, 1): [T], [T, B] -> [T, B, W]."""
    capacity = carry["replay"].shape[1]
    size = carry["written"][which].clamp(max=capacity)
    return carry["replay"][which[:, None], _index(uniforms, size[:, None])]


def drawn_recent(carry: LearnerState, which: Tensor, uniforms: Tensor) -> Tensor:
    """The same of the recent rows."""
    size = torch.full_like(which, carry["recent"].shape[1])
    return carry["recent"][which[:, None], _index(uniforms, size[:, None])]


def _index(uniforms: Tensor, size: Tensor) -> Tensor:
    # A number just below 1 may be rounded up to it in single precision.
    return torch.minimum((uniforms * size).long(), size - 1)


def mixed(old: LearnerState, new: LearnerState, rate: float) -> LearnerState:
    """A target network's step towards what it follows: (1 - rate) old + rate new."""
    return {name: (1 - rate) * value + rate * new[name] for name, value in old.items()}
