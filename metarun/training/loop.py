"""The outer loop. It knows tasks, gradients and steps; it names no algorithm, data set or regularizer.

An outer step has six phases:

    sample         draw the step's tasks
    differentiate  the mean meta-gradient over them (meta_gradient.py)
    check          refuse a gradient that is not finite (nonfinite.py)
    update         the optimizer moves the meta-parameters, then penalties with method=prox; their average follows
    log            the step's metrics and measures, every train.log_every steps
    validate       score fixed validation tasks, probe, save a checkpoint, when they are due
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from metarun.algorithms.objective import Entry, add_noise
from metarun.compute.task_axis import take_step
from metarun.diagnostics.step import Values, update_measures
from metarun.training.average import evaluate_average, update_average
from metarun.training.compiled_steps import CompiledSteps, can_compile_steps
from metarun.training.meta_gradient import MetaGradient, MetaGradients, StepGradient, join_ranks, mean_metrics
from metarun.training.nonfinite import handle_nonfinite, locate_nonfinite, start_rewinding, update_rewind_point
from metarun.training.optimizer import apply_update, clip_gradient, learning_rate, step_rates
from metarun.training.own_algorithm import explain_errors
from metarun.training.run import AT_ONCE, Observer, State, StopReason, Trainer
from metarun.types import Params, Task

COMPILATION = "compilation"
"""In `state.spent`, the seconds of steps that compile: they are no training, and `train.max_minutes` does not count
them."""


def train(trainer: Trainer, state: State, observer: Observer) -> str:
    """Run outer steps until all are done or there is a reason to stop; return the run's status ("completed", ...)."""
    one_process = trainer.placement.processes.size == 1
    make: Any = outer_steps if can_compile_steps(trainer, state.params) else outer_step
    source: Any = CompiledSteps if make is outer_steps else MetaGradients
    source = source(trainer, state.params, observer.notify)
    start_rewinding(trainer, state)
    earlier, start = state.seconds + state.spent.get(COMPILATION, 0.0), time.monotonic()
    while state.step < trainer.settings.steps:
        begun, function = time.monotonic(), source.at(state.step)
        if source.compiling:
            observer.on_work("compiling", 0, 0)
        reason = make(trainer, state, function, observer)
        if source.compiling:
            state.spent[COMPILATION] = state.spent.get(COMPILATION, 0.0) + time.monotonic() - begun
        state.seconds = earlier + time.monotonic() - start - state.spent.get(COMPILATION, 0.0)
        validate(trainer, state, observer)
        if one_process:
            reason = stop_reason(trainer, state, observer)
        if reason:
            observer.save_checkpoint(state)
            return reason.value
    return "completed"


def stop_reason(trainer: Trainer, state: State, observer: Observer) -> StopReason | None:
    """Why this process would stop now, or None. Of several ranks, the first one's clock counts."""
    if observer.stop_requested():
        return StopReason.INTERRUPTED
    limit = trainer.settings.max_minutes
    over = limit is not None and state.seconds >= 60 * limit
    return StopReason.TIME_IS_UP if over and trainer.placement.processes.is_first else None


def outer_step(trainer: Trainer, state: State, meta_gradient: StepGradient, observer: Observer) -> StopReason | None:
    """Sample, differentiate, check, update, log. Return the reason to stop that several ranks agree on."""
    params, tasks = sample(trainer, state)
    found, reason = differentiate(trainer, state, meta_gradient, params, tasks, observer)
    if not found.finite:
        where = locate_nonfinite(found, trainer.placement.processes)
        handle_nonfinite(trainer, state, where, observer)
        state.step += 1
        return reason
    logs = is_due(state.step + 1, trainer.settings.log_every, trainer.settings.steps)
    values = describe(trainer, state, found, tasks) if logs else {}
    before = {k: v.clone() for k, v in state.params.items()} if logs and trainer.measures else None
    lr = update(trainer, state, found.mean)
    if logs:
        log_update(trainer, state, observer, values | {"lr": lr}, before)
    return reason


def outer_steps(trainer: Trainer, state: State, steps: CompiledSteps, observer: Observer) -> None:
    """The same in one compiled call for all steps up to the next that something follows."""
    first, count = state.step, steps.count(state)
    tasks = trainer.tasks_of([first + min(i, count - 1) for i in range(AT_ONCE)])
    with explain_errors(trainer.algorithm):
        before, found = steps(state, count, tasks)
    if not found.finite:
        handle_nonfinite(trainer, state, locate_nonfinite(found, trainer.placement.processes), observer)
        state.step += 1
        return
    update_rewind_point(trainer, state)
    if is_due(state.step, trainer.settings.log_every, trainer.settings.steps):
        then = replace(state, params=before, step=state.step - 1)
        values = describe(trainer, then, found, take_step(tasks, count - 1))
        lr = learning_rate(trainer.optim, state.step - 1, trainer.settings.steps)
        log_update(trainer, state, observer, values | {"lr": lr}, before if trainer.measures else None)


def sample(trainer: Trainer, state: State) -> tuple[Params, Task]:
    """Meta-parameters and tasks of the step, as the meta-gradient takes them: a StatefulLearner prepares both."""
    tasks = trainer.tasks(state.step)
    trainer.regularization.set_weights(state.params, state.step)
    if not state.carry:
        return state.params, tasks
    learner: Any = trainer.algorithm  # a StatefulLearner, for the state has its carry
    state.carry, params, tasks = learner.before_step(state.params, state.carry, tasks, trainer.seed, state.step)
    return params, tasks


def differentiate(
    trainer: Trainer, state: State, meta_gradient: StepGradient, params: Params, tasks: Task, observer: Observer
) -> tuple[MetaGradient, StopReason | None]:
    """The step's meta-gradient over the tasks of all ranks, and the reason to stop that several ranks agree on."""
    learner, processes, first = trainer.algorithm, trainer.placement.processes, trainer.own_tasks.start
    with explain_errors(learner):
        if trainer.noisy:
            params, tasks = add_noise(learner, params, tasks, trainer.seed, state.step, first)
        found = meta_gradient(params, tasks)
    if processes.size == 1:
        return found, None
    return join_ranks(trainer.placement, found, trainer.settings.tasks, stop_reason(trainer, state, observer))


def update(trainer: Trainer, state: State, gradient: Params) -> float:
    """Move the meta-parameters along the gradient; return the learning rate of the step."""
    lr = learning_rate(trainer.optim, state.step, trainer.settings.steps)
    if trainer.optim.reset == "every_step":
        state.optimizer.state.clear()
    apply_update(state.optimizer, state.params, clip_gradient(gradient, trainer.optim.clip), lr)
    finish_step(trainer, state, lr)
    return lr


def finish_step(trainer: Trainer, state: State, lr: float) -> None:
    """What follows the optimizer's step: proximal steps, the average, a learner's own state, the step number."""
    if trainer.regularization.select(Entry.OUTER_STEP):
        rates = step_rates(state.optimizer, state.params, lr)
        for name, value in trainer.regularization.shrink_outer(state.params, rates, lr).items():
            state.params[name].copy_(value)
    if state.average:
        moved = trainer.averaged(state.params)
        state.average = update_average(state.average, moved, trainer.settings.average_decay)
    if state.carry:
        learner: Any = trainer.algorithm
        state.carry = learner.after_step(state.params, state.carry)
    state.step += 1
    update_rewind_point(trainer, state)


def describe(trainer: Trainer, state: State, found: MetaGradient, tasks: Task) -> Values:
    """The metrics of a step before its update: the tasks' own, the learner's, and the measures."""
    values = mean_metrics(found)
    if state.carry:
        learner: Any = trainer.algorithm
        values |= learner.metrics(state.carry)
    if trainer.measures:
        grads, processes, count = found.grads, trainer.placement.processes, trainer.settings.tasks
        if processes.size > 1:  # each rank has its share, and the measures need all
            grads = processes.gather(grads, count)
            tasks = trainer.tasks(state.step, range(min(count, trainer.measures.tasks)))
        with track_seconds(state, "measures"):
            values |= trainer.measures(state.params, grads, tasks)
    return values


def log_update(trainer: Trainer, state: State, observer: Observer, values: Values, before: Params | None) -> None:
    """Log a step's values with what its update did; `before`: the meta-parameters before it, if it is measured."""
    moved = update_measures(before, state.params) if before else {}
    moved |= trainer.optimum(state.params) if trainer.optimum else {}
    observer.on_log(state, values | moved)


def validate(trainer: Trainer, state: State, observer: Observer) -> None:
    """Validation, probes and checkpoint, each when it is due."""
    observer.on_step(state)
    if is_due(state.step, trainer.settings.eval_every, trainer.settings.steps):
        with track_seconds(state, "validation"):
            evaluation = evaluate_average(trainer.validate, state.params, state.average)
            if trainer.optimum:
                evaluation = evaluation._replace(optimum=trainer.optimum(state.tested))
        improved = evaluation.error < state.best_error
        if improved:
            state.best_error, state.best_step = evaluation.error, state.step
        observer.on_validation(state, evaluation, improved)
    if trainer.probe and is_due(state.step, trainer.probe_every, trainer.settings.steps):
        with track_seconds(state, "probes"):
            values = trainer.probe(state.params, trainer.last_rates(state))
        observer.on_probe(state, values)
    if is_due(state.step, trainer.settings.checkpoint_every, trainer.settings.steps):
        observer.save_checkpoint(state)


@contextlib.contextmanager
def track_seconds(state: State, name: str) -> Iterator[None]:
    """Add the block's seconds to `state.spent`."""
    start = time.monotonic()
    yield
    state.spent[name] = state.spent.get(name, 0.0) + time.monotonic() - start


def is_due(step: int, every: int, steps: int) -> bool:
    """Every so many steps, and at the last."""
    return step % every == 0 or step == steps
