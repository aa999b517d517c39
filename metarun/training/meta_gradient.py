"""The meta-gradient of an outer step: over all tasks in one process, or joined from the shares of several.

    total = (1/T) sum_i g_i + grad of what the penalties add once

Of several ranks each sums over its own tasks; rank 0 adds what is added once. One exchange a step carries these sums,
all tasks' metrics, and each rank's wish to stop, so that all stop after the same step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from metarun.compute.compilation import compiled, compiles
from metarun.compute.distributed import ALONE, Team
from metarun.compute.task_axis import map_tasks, select_tasks
from metarun.training.run import Trainer
from metarun.types import Algorithm, Metrics, Params, StagedLearner, Task

STOP_REASONS = ("interrupted", "time is up")
"""Why a run may stop before its last step."""


class MetaGradient(NamedTuple):
    """One outer step's gradient, and what there is to say of it."""

    mean: Params  # of the tasks' meta-gradients, plus the gradient of what the penalties add once
    grads: Params  # each task's own, [T, ...]; of several ranks those of this one
    metrics: Metrics  # each [T]
    penalty: Tensor  # all that the penalties add to the outer objective
    finite: Tensor  # whether all of `mean` is


class Part(NamedTuple):
    """What one of several ranks has of it."""

    total: Params  # its summand
    grads: Params  # each own task's, [t, ...]
    metrics: Metrics  # each [t]
    penalty: Tensor  # what the penalties add once; 0 but on rank 0


def batched_meta_gradient(trainer: Trainer) -> Callable[[Params, Task], MetaGradient]:
    """theta, tasks -> their meta-gradient."""
    per_task, shared = _functions(trainer, trainer.settings.tasks)
    regularization = trainer.regularization

    def meta_gradient(params: Params, tasks: Task) -> MetaGradient:
        grads, metrics = per_task(params, tasks)
        trained = regularization.trained(params)
        mean = {k: grads[k].mean(0) for k in trained}
        extra, penalty = grad_and_value(shared)(params, tasks)
        total = {k: mean[k] + extra[k] for k in trained}
        return _whole(total, {k: grads[k] for k in trained}, metrics, penalty)

    return meta_gradient


def own_meta_gradient(trainer: Trainer) -> Callable[[Params, Task], Part]:
    """theta, this rank's tasks (all of them on the first of several ranks whose penalties need them) -> its part."""
    team, count, regularization = trainer.placement.team, trainer.settings.tasks, trainer.regularization
    own, todo = len(team.share(count)), team.todo(count)
    per_task, shared = _functions(trainer, len(todo))

    def meta_gradient(params: Params, tasks: Task) -> Part:
        grads, metrics = per_task(params, select_tasks(tasks, range(len(todo))))
        trained = regularization.trained(params)
        total = {k: grads[k][:own].sum(0) / count for k in trained}
        penalty = next(iter(total.values())).new_zeros(())
        if team.first:
            extra, penalty = grad_and_value(shared)(params, tasks)
            total = {k: total[k] + extra[k] for k in trained}
        return Part(total, {k: grads[k] for k in trained}, metrics, penalty)

    return meta_gradient


def _functions(trainer: Trainer, count: int) -> tuple[Callable, Callable]:
    """The meta-gradients of so many tasks, and what the penalties add once."""
    place = trainer.placement
    chunk = place.chunk(trainer.spec, trainer.dataset.input_shape())
    per_task = map_tasks(trainer.algorithm.meta_grad, count, chunk, place.memory_format)

    def shared(params: Params, tasks: Task) -> Tensor:
        return trainer.regularization.shared(trainer.algorithm, params, tasks)

    return per_task, shared


def joined(team: Team, part: Part, count: int, wish: str) -> tuple[MetaGradient, str]:
    """The parts of all ranks as one, and what any of them wishes, the same on each."""
    like = next(iter(part.total.values()))
    sent = {f"total {k}": v for k, v in part.total.items()}
    sent |= {f"metric {k}": team.placed(v.to(like.dtype), count) for k, v in part.metrics.items()}
    sent["penalty"] = part.penalty.to(like.dtype)
    sent["wishes"] = like.new_tensor([wish == w for w in STOP_REASONS])
    found = team.sum_of(sent)
    total = {k: found[f"total {k}"] for k in part.total}
    metrics = {k: found[f"metric {k}"] for k in part.metrics}
    wished = [w for w, votes in zip(STOP_REASONS, found["wishes"].tolist(), strict=True) if votes]
    return _whole(total, part.grads, metrics, found["penalty"]), next(iter(wished), "")


def _whole(total: Params, grads: Params, metrics: Metrics, penalty: Tensor) -> MetaGradient:
    penalty = penalty + metrics["penalty"].mean() if "penalty" in metrics else penalty
    finite = torch.stack([v.isfinite().all() for v in (*total.values(), metrics["loss"])]).all()
    return MetaGradient(total, grads, metrics, penalty, finite)


def nonfinite_part(found: MetaGradient, team: Team = ALONE) -> tuple[str, str]:
    """Where a NaN or an infinity came from, and who else had one; empty when all is finite."""
    if found.finite:
        return "", ""
    rows = [g.flatten(1) if g.ndim > 1 else g[:, None] for g in found.grads.values()]
    sound = torch.stack([r.isfinite().all(1) for r in rows]).all(0)
    sound = team.gathered({"": sound}, len(found.metrics["loss"]))[""] & found.metrics["loss"].isfinite()
    tasks = torch.nonzero(~sound).flatten().tolist()
    if tasks:
        others = f" (and {len(tasks) - 1} more of {len(sound)} tasks)" if len(tasks) > 1 else ""
        return f"task {tasks[0]}", others
    return "the penalty or the mean over tasks", ""


def describe(found: MetaGradient) -> dict[str, float]:
    """The tasks' own metrics, averaged, and the penalty."""
    values = {name: float(v.double().mean()) for name, v in found.metrics.items() if name != "penalty"}
    penalty = float(found.penalty)
    return values | {"penalty": penalty} if penalty else values


UNKNOWN = object()


class MetaGradients:
    """Gives the function of an outer step; `tell` is told when one has to be compiled."""

    def __init__(self, trainer: Trainer, params: Params, tell: Callable[[str], None]) -> None:
        self.trainer, self.tell = trainer, tell
        self.compiles = compiles(trainer.placement, params, trainer.settings.steps)
        self.first = params
        # Asked once: holding a learner against a protocol takes longer than anything else here.
        self.staged: Any = trainer.algorithm if isinstance(trainer.algorithm, StagedLearner) else None
        self.stage: Any = UNKNOWN
        self.function: Any = None

    def at(self, step: int) -> Callable[..., Any]:
        stage = self.staged.stage(step) if self.staged else None
        if stage != self.stage:
            self.stage = stage
            self.function = self._made(self.staged.at(stage) if self.staged else self.trainer.algorithm)
        return self.function

    def _made(self, learner: Algorithm) -> Callable[..., Any]:
        trainer = replace(self.trainer, algorithm=learner)
        alone = trainer.placement.team.size == 1
        function = batched_meta_gradient(trainer) if alone else own_meta_gradient(trainer)
        if not self.compiles:
            return function
        self.tell(
            "compiling the outer step first, half a minute unless an earlier run has (device.compile=off goes without)"
        )
        return compiled(function, trainer.placement, self.first)
