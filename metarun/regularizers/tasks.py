r"""What penalties across tasks share: their gradient, summed up from one gradient of each task.

    Omega = F(v_1(theta) .. v_T(theta)),   grad Omega = sum_i (d v_i / d theta)^T dF/dv_i

The derivative of a task is taken inside of vmap and not outside of it. So a few tasks at a time can be handled, as for
the meta-gradient, with the memory of these; and the result is right: the other order has wrong second derivatives of
batch normalisation behind a convolution (torch 2.13; pytorch/functorch issue 534). The price is that `with_gradient`
can be differentiated once only.
"""

from __future__ import annotations

import torch

from metarun.compute.device import Placement
from metarun.compute.task_axis import PerTask, map_tasks
from metarun.errors import require
from metarun.types import Batch, EpisodeSpec, Metrics, Params, Task


def map_each_task(function: PerTask, params: Params, tasks: Task) -> tuple[Params, Metrics]:
    """Both results of (theta, task) for every task, [T, ...]; no derivative by theta is recorded."""
    x, rows = tasks.support.x, [b.x.shape[1] for b in tasks]
    chunk = Placement(x.device, x.dtype, "auto", False).chunk(EpisodeSpec(1, *rows), tuple(x.shape[2:]))
    return map_tasks(function, len(x), chunk)({k: p.detach() for k, p in params.items()}, tasks)


def attach_gradient(value: torch.Tensor, gradient: Params, params: Params) -> torch.Tensor:
    """A scalar that has this value and, once differentiated by theta, this gradient."""
    moves = [(gradient[k] * (params[k] - params[k].detach())).sum() for k in gradient]
    return value + torch.stack(moves).sum()


def first_tasks(tasks: Task, count: int | None) -> Task:
    """The first so many tasks; None: all of them."""
    return tasks if count is None else Task(*(Batch(b.x[:count], b.y[:count]) for b in tasks))


def check_count(count: int | None) -> None:
    require(count is None or count >= 2, "tasks", count, "must be at least 2, or null for all")
