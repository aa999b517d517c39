"""The outer loop. It knows tasks, gradients and steps; it names no algorithm, data set or regularizer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from metarun.algorithms.objective import add_noise
from metarun.diagnostics.step import Values, update_measures
from metarun.training.meta_gradient import STOP_REASONS, MetaGradient, MetaGradients, describe, joined, nonfinite_part
from metarun.training.nonfinite import begin, refuse, taken
from metarun.training.optimizer import apply_update, clipped, learning_rate, step_rates
from metarun.training.run import State, Trainer, Watcher
from metarun.types import Params, Task


def train(trainer: Trainer, state: State, watcher: Watcher) -> str:
    """Run outer steps until all are done, time is up or a stop is requested; returns which ("completed", ...)."""
    alone = trainer.placement.team.size == 1
    meta_gradients = MetaGradients(trainer, state.params, watcher.noted)
    begin(trainer, state)
    sitting = Clock(state.seconds)
    while state.step < trainer.settings.steps:
        agreed = outer_step(trainer, state, meta_gradients.at(state.step), watcher)
        state.seconds = sitting.seconds()
        after_step(trainer, state, watcher)
        why = wish(trainer, state, watcher) if alone else agreed
        if why:
            watcher.checkpoint(state)
            return why
    return "completed"


def wish(trainer: Trainer, state: State, watcher: Watcher) -> str:
    """Why this process would stop now, if it would. Of several, the first one's clock counts."""
    if watcher.stop_requested():
        return STOP_REASONS[0]
    limit = trainer.settings.max_minutes
    over = limit is not None and state.seconds >= 60 * limit
    return STOP_REASONS[1] if over and trainer.placement.team.first else ""


def outer_step(trainer: Trainer, state: State, meta_gradient: Callable[..., Any], watcher: Watcher) -> str:
    """Draw tasks, differentiate, check, and only then move the meta-parameters. Of several ranks all return why one of
    them wishes to stop."""
    tasks = trainer.tasks(state.step)
    trainer.regularization.set_weights(state.params, state.step)
    params, tasks = before_step(trainer, state, tasks)
    found, agreed = of_all_tasks(trainer, state, meta_gradient, params, tasks, watcher)
    culprit, others = nonfinite_part(found, trainer.placement.team)
    if culprit:
        refuse(trainer, state, f"at step {state.step}, {culprit}, seed {trainer.seed}{others}", watcher)
        state.step += 1
        return agreed
    logged = due(state.step + 1, trainer.settings.log_every, trainer.settings.steps)
    values = described(trainer, state, found, tasks) if logged else {}
    before = {k: v.clone() for k, v in state.params.items()} if logged and trainer.measures else None
    lr = learning_rate(trainer.optim, state.step, trainer.settings.steps)
    apply_update(state.optimizer, state.params, clipped(found.mean, trainer.optim.clip), lr)
    proximal_step(trainer, state, lr)
    settle(trainer, state)
    state.step += 1
    taken(trainer, state)
    if logged:
        moved = update_measures(before, state.params) if before else {}
        watcher.trained(state, values | moved | {"lr": lr})
    return agreed


def of_all_tasks(
    trainer: Trainer, state: State, meta_gradient: Callable[..., Any], params: Params, tasks: Task, watcher: Watcher
) -> tuple[MetaGradient, str]:
    """The step's meta-gradient, and what the ranks agree on, if there are several."""
    learner, team, first = trainer.algorithm, trainer.placement.team, trainer.own_tasks.start
    found = meta_gradient(*add_noise(learner, params, tasks, trainer.seed, state.step, first))
    if team.size == 1:
        return found, ""
    return joined(team, found, trainer.settings.tasks, wish(trainer, state, watcher))


def before_step(trainer: Trainer, state: State, tasks: Task) -> tuple[Params, Task]:
    """Meta-parameters and tasks as the gradient takes them: a learner that carries state prepares both by it."""
    if not state.carry:
        return state.params, tasks
    learner: Any = trainer.algorithm  # only one that carries anything has given the state a carry
    state.carry, params, tasks = learner.before_step(state.params, state.carry, tasks, trainer.seed, state.step)
    return params, tasks


def settle(trainer: Trainer, state: State) -> None:
    """What is carried follows the new meta-parameters."""
    if state.carry:
        learner: Any = trainer.algorithm
        state.carry = learner.after_step(state.params, state.carry)


def proximal_step(trainer: Trainer, state: State, lr: float) -> None:
    """What the penalties with method=prox do after the optimizer, in place."""
    if trainer.regularization.outer_proximal:
        rates = step_rates(state.optimizer, state.params, lr)
        for name, value in trainer.regularization.shrink(state.params, rates, lr).items():
            state.params[name].copy_(value)


def after_step(trainer: Trainer, state: State, watcher: Watcher) -> None:
    """Validation and checkpoint, when they are due."""
    watcher.stepped(state)
    if due(state.step, trainer.settings.eval_every, trainer.settings.steps):
        with timed(state, "validation"):
            evaluation = trainer.validate(state.params)
        improved = evaluation.error < state.best_error
        if improved:
            state.best_error, state.best_step = evaluation.error, state.step
        watcher.validated(state, evaluation, improved)
    if trainer.probe and due(state.step, trainer.probe_every, trainer.settings.steps):
        with timed(state, "probes"):
            values = trainer.probe(state.params)
        watcher.probed(state, values)
    if due(state.step, trainer.settings.checkpoint_every, trainer.settings.steps):
        watcher.checkpoint(state)


def described(trainer: Trainer, state: State, found: MetaGradient, tasks: Task) -> Values:
    """The numbers of one step, its measures of convergence and stability with them."""
    values = describe(found)
    if state.carry:
        learner: Any = trainer.algorithm
        values |= learner.metrics(state.carry)
    if trainer.measures:
        with timed(state, "measures"):
            values |= trainer.measures(state.params, *measured(trainer, state.step, found.grads, tasks))
    return values


def measured(trainer: Trainer, step: int, grads: Params, tasks: Task) -> tuple[Params, Task]:
    """All tasks' meta-gradients, and the tasks whose inner loop is followed. Of several ranks each has its share, and
    brings the others what is asked for."""
    team, count = trainer.placement.team, trainer.settings.tasks
    if team.size == 1 or trainer.measures is None:
        return grads, tasks
    return team.gathered(grads, count), trainer.tasks(step, range(min(count, trainer.measures.tasks)))


@contextlib.contextmanager
def timed(state: State, what: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    state.spent[what] = state.spent.get(what, 0.0) + time.monotonic() - start


def due(step: int, every: int, steps: int) -> bool:
    """Every so many steps, and at the last."""
    return step % every == 0 or step == steps


class Clock:
    """Seconds of training: those of earlier sittings and of this one."""

    def __init__(self, earlier: float) -> None:
        self.earlier, self.start = earlier, time.monotonic()

    def seconds(self) -> float:
        return self.earlier + time.monotonic() - self.start
