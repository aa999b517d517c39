"""Map a function of one task over the task axis T: with vmap, or one task at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from metarun.compute.distributed import SINGLE_PROCESS, ProcessGroup
from metarun.errors import one_line
from metarun.types import Batch, Params, Task

PerTask = Callable[[Params, Task], tuple[dict[str, Tensor], dict[str, Tensor]]]

CAUSES = (
    (
        r"\.item\(\)|data-dependent",
        "it branches on a tensor's value or takes it for a number (.item(), one_hot); use torch.where, or compare "
        "labels with torch.arange",
    ),
    (r"randomness", "it draws random numbers while it runs; of a module, nn.Dropout is supported"),
    (r"inplace|in-place", "it changes a tensor in place; make a new one"),
)
"""Parts of torch's messages about a function under `vmap`, and what they mean."""


def find_cause(error: BaseException) -> str | None:
    """Why a function cannot be batched, by torch's message; None if the error is another."""
    text = one_line(error)
    return next((cause for pattern, cause in CAUSES if re.search(pattern, text)), None)


def map_tasks(
    function: PerTask,
    count: int,
    chunk: int | None,
    memory_format: str = "auto",
    processes: ProcessGroup = SINGLE_PROCESS,
) -> PerTask:
    """Turn a function of (params, one task) into one of (params, `count` tasks); its results have a leading T axis.

    Of several processes, each computes its share of the tasks, and all have the results.

    With chunks of one task nothing is batched by vmap: convolutions then stay plain ones, which on a CPU are two to
    five times as fast when a task has many images, and channels last in memory unless `memory_format` is contiguous.
    """
    if processes.size > 1:
        own = processes.nonempty_share(count)
        function_of_share = map_tasks(function, len(own), chunk, memory_format)

        def share_and_gather(params: Params, tasks: Task) -> Any:
            results = function_of_share(params, select_tasks(tasks, own))
            # One exchange for both trees.
            rows = processes.gather({f"{i}{k}": v for i, tree in enumerate(results) for k, v in tree.items()}, count)
            return tuple({k: rows[f"{i}{k}"] for k in tree} for i, tree in enumerate(results))

        return share_and_gather
    if count > 1 and chunk != 1:
        return vmap(function, in_dims=(None, 0), chunk_size=chunk)

    function = in_memory_order(function, memory_format)

    def one_by_one(params: Params, tasks: Task) -> Any:
        results = [function(params, Task(*(Batch(b.x[i], b.y[i]) for b in tasks))) for i in range(count)]
        return tuple(
            {k: torch.stack([tree[k] for tree in trees]) for k in trees[0]} for trees in zip(*results, strict=True)
        )

    return one_by_one


def in_memory_order(function: PerTask, memory_format: str) -> PerTask:
    """The function of one task with its images and weights channels last in memory, unless `memory_format` is
    contiguous."""
    if memory_format == "contiguous":
        return function

    def reordered(params: Params, task: Task) -> Any:
        params = {k: to_channels_last(v) for k, v in params.items()}
        return function(params, Task(*(Batch(to_channels_last(b.x), b.y) for b in task)))

    return reordered


def select_tasks(tasks: Task, which: range) -> Task:
    """The tasks of a range, of tasks with a leading T axis."""
    return Task(*(Batch(b.x[which.start : which.stop], b.y[which.start : which.stop]) for b in tasks))


def to_channels_last(x: Tensor) -> Tensor:
    """Order images and convolution weights in memory as a CPU's convolutions are fastest."""
    # Not by contiguous(memory_format=...): images of one channel, for which both orders are the same, keep its strides.
    return x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1) if x.ndim == 4 else x


def stack_tasks(tasks: Sequence[Task]) -> Task:
    """Tasks of several steps or runs, each tensor [T, ...] -> [len(tasks), T, ...]."""
    support, query = zip(*tasks, strict=True)
    return Task(*(Batch(*(torch.stack(part) for part in zip(*side, strict=True))) for side in (support, query)))


def take_step(tasks: Task, i: int) -> Task:
    """One of what `stack_tasks` returns."""
    return Task(*(Batch(side.x[i], side.y[i]) for side in tasks))
