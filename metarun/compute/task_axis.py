"""A function of one task as one of many: the task axis, by vmap or one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from metarun.compute.distributed import SINGLE_PROCESS, ProcessGroup
from metarun.types import Batch, Params, Task

PerTask = Callable[[Params, Task], tuple[dict[str, Tensor], dict[str, Tensor]]]


def map_tasks(
    function: PerTask,
    count: int,
    chunk: int | None,
    memory_format: str = "auto",
    processes: ProcessGroup = SINGLE_PROCESS,
) -> PerTask:
    """A function of (params, one task) as one of (params, `count` tasks), all its results with a leading T axis.

    Of several processes, each computes its share of the tasks, and all have the results.

    With chunks of one task nothing is batched by vmap: convolutions then stay plain ones, which on a CPU are two to
    five times as fast when a task has many images, and channels last in memory unless `memory_format` is contiguous.
    """
    if processes.size > 1:
        return _spread(function, count, chunk, memory_format, processes)
    ordered = _as_it_is if memory_format == "contiguous" else channels_last
    if count > 1 and chunk != 1:
        return vmap(function, in_dims=(None, 0), chunk_size=chunk)

    def one_by_one(params: Params, tasks: Task) -> Any:
        params = {k: ordered(v) for k, v in params.items()}
        done = [function(params, Task(*(Batch(ordered(b.x[i]), b.y[i]) for b in tasks))) for i in range(count)]
        return tuple(
            {k: torch.stack([tree[k] for tree in trees]) for k in trees[0]} for trees in zip(*done, strict=True)
        )

    return one_by_one


def _spread(function: PerTask, count: int, chunk: int | None, memory_format: str, processes: ProcessGroup) -> PerTask:
    own = map_tasks(function, len(processes.nonempty_share(count)), chunk, memory_format)

    def spread(params: Params, tasks: Task) -> Any:
        found = own(params, select_tasks(tasks, processes.nonempty_share(count)))
        # One exchange for both trees.
        rows = processes.gather({f"{i}{k}": v for i, tree in enumerate(found) for k, v in tree.items()}, count)
        return tuple({k: rows[f"{i}{k}"] for k in tree} for i, tree in enumerate(found))

    return spread


def select_tasks(tasks: Task, which: range) -> Task:
    """A few of tasks with a leading T axis."""
    return Task(*(Batch(b.x[which.start : which.stop], b.y[which.start : which.stop]) for b in tasks))


def channels_last(x: Tensor) -> Tensor:
    """Images and convolution weights in the memory order that a CPU's convolutions are fastest in."""
    # Not by contiguous(memory_format=...): images of one channel, for which both orders are the same, keep its strides.
    return x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1) if x.ndim == 4 else x


def _as_it_is(x: Tensor) -> Tensor:
    return x
