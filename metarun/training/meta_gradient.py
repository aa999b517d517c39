"""The meta-gradient of an outer step: over all tasks in one process, or joined from the shares of several.

    total = (1/T) sum_i g_i + grad of the penalties that are added once

Of several ranks each sums over its own tasks; rank 0 adds the penalties. One exchange a step carries these sums, all
tasks' metrics, and each rank's reason to stop, so that all stop after the same step. With device.deterministic=portable
it carries the gradients of all tasks, which every rank then adds as a single process does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from metarun.algorithms.inner_loop import split_adapted
from metarun.compute.compilation import compile_function, is_known, should_compile
from metarun.compute.device import Placement
from metarun.compute.task_axis import PerTask, in_memory_order, map_tasks, select_tasks
from metarun.compute.threads import is_connected
from metarun.training.own_algorithm import check_results
from metarun.training.run import StopReason, Trainer
from metarun.types import Algorithm, GradientLearner, Metrics, Params, StagedLearner, Task

StepGradient = Callable[[Params, Task], Any]
"""theta, tasks -> `MetaGradient`, or this rank's `RankShare` of it."""

COMPILING = "compiling the outer step first: half a minute to two, cached for later runs (device.compile=off skips it)"


class MetaGradient(NamedTuple):
    """One outer step's gradient and its metrics."""

    mean: Params  # of the tasks' meta-gradients, plus the gradient of the penalties that are added once
    grads: Params  # each task's own, [T, ...]; of several ranks those of this one
    metrics: Metrics  # each [T]
    penalty: Tensor  # all that the penalties add to the outer objective
    finite: Tensor  # whether all of `mean` is


class RankShare(NamedTuple):
    """The part of a meta-gradient that one of several ranks computes."""

    grads: Params  # each own task's, [t, ...]
    metrics: Metrics  # each [t]
    extra: Params  # gradient of the penalties that are added once; 0 but on rank 0
    penalty: Tensor  # their value; 0 but on rank 0


class MetaGradients:
    """The meta-gradient as a function of (theta, tasks), built again where a StagedLearner's stage changes.

    `notify` receives a message when the function has to be compiled. It is compiled where it is called first: at the
    step for which `compiling` is true. With `side_by_side` it is that of several runs, each tensor [R, ...].
    """

    def __init__(
        self, trainer: Trainer, params: Params, notify: Callable[[str], None], side_by_side: bool = False
    ) -> None:
        self.trainer, self.notify, self.params, self.side_by_side = trainer, notify, params, side_by_side
        self.compiles = should_compile_step(trainer, params)
        # Asked once: holding a learner against a protocol takes longer than anything else here.
        self.staged: Any = trainer.algorithm if isinstance(trainer.algorithm, StagedLearner) else None
        self.stage: Any = None
        self.function: StepGradient | None = None
        self.compiling = False

    def at(self, step: int) -> StepGradient:
        """The function for an outer step."""
        stage = self.staged.stage(step) if self.staged else None
        self.compiling = False
        if self.function is None or stage != self.stage:
            self.stage, self.compiling = stage, self.compiles
            self.function = self._build(self.staged.at(stage) if self.staged else self.trainer.algorithm)
        return self.function

    def _build(self, learner: Algorithm) -> StepGradient:
        if self.compiles:
            self.notify(COMPILING)
        trainer = replace(self.trainer, algorithm=learner)
        return build_step_gradient(trainer, self.params, self.compiles, self.side_by_side)


def build_step_gradient(trainer: Trainer, params: Params, compiled: bool, side_by_side: bool = False) -> StepGradient:
    """A run's function theta, tasks -> their meta-gradient, or one rank's share of it.

    It is compiled as a whole, but for convolutions that take tasks one at a time: of these one task's part is.
    """
    build = build_meta_gradient if trainer.placement.processes.size == 1 else build_rank_share
    if not compiled:
        function: Any = build(trainer)
        return vmap(function) if side_by_side else function
    parts = decisive_parts(trainer)
    if not is_connected(params) and takes_tasks_alone(trainer):
        one = in_memory_order(check_results(trainer.algorithm), trainer.placement.memory_format)
        return build(trainer, compile_function(one, trainer.placement, params, ("one task", parts)))
    function = build(trainer)
    return compile_function(vmap(function) if side_by_side else function, trainer.placement, params, parts)


MATRIX_PRODUCTS_PAY_AFTER = 1_000
"""Outer steps after which compiling is won back where convolutions are products of matrices (conv4 with stride 2): its
steps take 100 ms and more, of which compiling saves a tenth to a half."""

TASKS_PAY_AFTER = 4_000
"""Tasks after which it is where convolutions take tasks one at a time and are differentiated twice (conv4 with max-pool
and MAML, iMAML, BOIL): a task takes a fifth to a half less, and compiling as long as 150 to 800 tasks."""


def should_compile_step(trainer: Trainer, params: Params) -> bool:
    """Whether a run's meta-gradient is compiled.

    That of a convolution network is compiled without being asked for if it is of metarun's own parts and never changes:
    stages would each be compiled for themselves, as would chunks of tasks, of which there may be two.
    """
    placement, settings, learner = trainer.placement, trainer.settings, trainer.algorithm
    if is_connected(params) or placement.compile is True:
        return should_compile(placement, params, settings.steps)
    if placement.matmul_only:
        chunk = placement.chunk(trainer.spec, trainer.dataset.input_shape())
        quicker, pays_after = chunk is None or settings.tasks <= 2 * chunk, MATRIX_PRODUCTS_PAY_AFTER
    else:
        quicker = takes_tasks_alone(trainer) and differentiates_convolutions(learner, params)
        pays_after = math.ceil(TASKS_PAY_AFTER / settings.tasks)
    staged = isinstance(learner, StagedLearner) and learner.stage(0) != learner.stage(settings.steps - 1)
    same = quicker and not staged and is_known(decisive_parts(trainer))
    return same and should_compile(placement, params, settings.steps, pays_after)


def takes_tasks_alone(trainer: Trainer) -> bool:
    """Whether the tasks of a step are taken one at a time."""
    chunk = trainer.placement.chunk(trainer.spec, trainer.dataset.input_shape())
    return chunk == 1 or trainer.settings.tasks == 1


def differentiates_convolutions(learner: Algorithm, params: Params) -> bool:
    """Whether the meta-gradient contains second derivatives by convolutions that inner steps move."""
    if not isinstance(learner, GradientLearner) or not learner.sees_adaptation:
        return False
    return not is_connected(split_adapted(params, learner.inner_rule)[0])


def decisive_parts(trainer: Trainer) -> tuple[Any, ...]:
    """All that decides the function of a step, beside the shapes of its inputs."""
    placement = trainer.placement
    chunk = placement.chunk(trainer.spec, trainer.dataset.input_shape())
    own = placement.processes.rank, placement.processes.size
    return trainer.algorithm, trainer.regularization, trainer.settings.tasks, chunk, placement.memory_format, own


def build_meta_gradient(trainer: Trainer, one_task: PerTask | None = None) -> Callable[[Params, Task], MetaGradient]:
    """The function theta, tasks -> their meta-gradient; `one_task` replaces the learner's own function of a task."""
    per_task, shared_penalty = _build_parts(trainer, trainer.settings.tasks, one_task)

    def meta_gradient(params: Params, tasks: Task) -> MetaGradient:
        grads, metrics = per_task(params, tasks)
        trained = trainer.trained_names(params)
        extra, penalty = grad_and_value(shared_penalty)(params, tasks)
        total = {k: grads[k].mean(0) + extra[k] for k in trained}
        return _assemble(total, {k: grads[k] for k in trained}, metrics, penalty)

    return meta_gradient


def build_rank_share(trainer: Trainer, one_task: PerTask | None = None) -> Callable[[Params, Task], RankShare]:
    """The function theta, tasks -> this rank's share; of the first of several ranks whose penalties need all tasks of a
    step, `tasks` are all of them. `one_task`: as above."""
    processes = trainer.placement.processes
    todo = processes.nonempty_share(trainer.settings.tasks)
    per_task, shared_penalty = _build_parts(trainer, len(todo), one_task)

    def rank_share(params: Params, tasks: Task) -> RankShare:
        grads, metrics = per_task(params, select_tasks(tasks, range(len(todo))))
        grads = {k: grads[k] for k in trainer.trained_names(params)}
        extra = {k: torch.zeros_like(params[k]) for k in grads}
        penalty = next(iter(extra.values())).new_zeros(())
        if processes.is_first:
            every, penalty = grad_and_value(shared_penalty)(params, tasks)
            extra = {k: every[k] for k in grads}
        return RankShare(grads, metrics, extra, penalty)

    return rank_share


def _build_parts(trainer: Trainer, count: int, one_task: PerTask | None) -> tuple[Callable, Callable]:
    """The meta-gradients of `count` tasks, and the penalties that are added once."""
    placement = trainer.placement
    chunk = placement.chunk(trainer.spec, trainer.dataset.input_shape())
    function, layout = one_task or check_results(trainer.algorithm), placement.memory_format
    per_task = map_tasks(function, count, chunk, "contiguous" if one_task else layout)

    def shared_penalty(params: Params, tasks: Task) -> Tensor:
        return trainer.regularization.shared_penalty(trainer.algorithm, params, tasks)

    return per_task, shared_penalty


def join_ranks(
    placement: Placement, share: RankShare, count: int, reason: StopReason | None
) -> tuple[MetaGradient, StopReason | None]:
    """Join the shares of all ranks, and agree on a reason to stop if any of them has one; the same on each rank."""
    processes = placement.processes
    like = next(iter(share.extra.values()))
    sent = {f"metric {k}": processes.pad(v.to(like.dtype), count) for k, v in share.metrics.items()}
    sent["penalty"] = share.penalty.to(like.dtype)
    sent["votes"] = like.new_zeros(processes.size, len(StopReason))
    sent["votes"][processes.rank] = like.new_tensor([reason is r for r in StopReason])
    if placement.portable:
        sent |= {f"grads {k}": processes.pad(v, count) for k, v in share.grads.items()}
        found = processes.join(sent | {f"extra {k}": v for k, v in share.extra.items()})
        total = {k: found[f"grads {k}"].mean(0) + found[f"extra {k}"] for k in share.extra}
    else:
        own = len(processes.share(count))
        sent |= {f"total {k}": v[:own].sum(0) / count + share.extra[k] for k, v in share.grads.items()}
        found = processes.sum(sent)
        total = {k: found[f"total {k}"] for k in share.extra}
    metrics = {k: found[f"metric {k}"] for k in share.metrics}
    reasons = [r for r, given in zip(StopReason, found["votes"].any(0).tolist(), strict=True) if given]
    return _assemble(total, share.grads, metrics, found["penalty"]), next(iter(reasons), None)


def _assemble(total: Params, grads: Params, metrics: Metrics, penalty: Tensor) -> MetaGradient:
    penalty = penalty + metrics["penalty"].mean() if "penalty" in metrics else penalty
    finite = torch.stack([v.isfinite().all() for v in (*total.values(), metrics["loss"])]).all()
    return MetaGradient(total, grads, metrics, penalty, finite)


def mean_metrics(found: MetaGradient) -> dict[str, float]:
    """The tasks' own metrics, averaged, and the penalty."""
    values = {name: float(v.double().mean()) for name, v in found.metrics.items() if name != "penalty"}
    penalty = float(found.penalty)
    return values | {"penalty": penalty} if penalty else values
