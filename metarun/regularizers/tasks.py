r"""Penalties across tasks: their gradient is a sum of one gradient of each task.

    Omega = F(v_1(theta) .. v_T(theta)),   grad Omega = sum_i (d v_i / d theta)^T dF/dv_i

The derivative of a task is taken inside vmap and not outside of it. So tasks can be handled in chunks, as for the
meta-gradient, with the memory of a chunk; and the result is right: in the other order, second derivatives of batch
normalisation behind a convolution are wrong (torch 2.13; pytorch/functorch issue 534). The price is that
`attach_gradient` can be differentiated only once.
"""

from __future__ import annotations

import torch

from metarun.compute.device import Placement
from metarun.compute.task_axis import PerTask, map_tasks
from metarun.errors import require
from metarun.types import Batch, EpisodeSpec, Metrics, Params, Task


def map_each_task(function: PerTask, params: Params, tasks: Task) -> tuple[Params, Metrics]:
    """Both results of function(theta, task) for every task, [T, ...], without recording derivatives by theta."""
    x, rows = tasks.support.x, [b.x.shape[1] for b in tasks]
    chunk = Placement(x.device, x.dtype, "auto", False).chunk(EpisodeSpec(1, *rows), tuple(x.shape[2:]))
    return map_tasks(function, len(x), chunk)({k: p.detach() for k, p in params.items()}, tasks)


def attach_gradient(value: torch.Tensor, gradient: Params, params: Params) -> torch.Tensor:
    """A scalar that has this value and, once differentiated by theta, this gradient."""
    zeros = [(g * (params[k] - params[k].detach())).sum() for k, g in gradient.items()]
    return value + torch.stack(zeros).sum()


def first_tasks(tasks: Task, count: int | None) -> Task:
    """The first `count` tasks; None: all of them."""
    return tasks if count is None else Task(*(Batch(b.x[:count], b.y[:count]) for b in tasks))


def check_count(count: int | None) -> None:
    require(count is None or count >= 2, "tasks", count, "must be at least 2, or null for all")
