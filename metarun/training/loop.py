"""The outer loop. It knows tasks, gradients and steps; it names no algorithm, data set or regularizer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from metarun.acting import Carry, CarryingLearner
from metarun.algorithms.objective import Regularization, with_all_noise
from metarun.compute.device import Placement
from metarun.config.schema import OptimConfig, TrainConfig
from metarun.diagnostics.step import StepMeasures, Values, update_measures
from metarun.training.evaluation import Evaluation
from metarun.training.meta_gradient import WISHES, MetaGradient, describe, joined, nonfinite_part
from metarun.training.nonfinite import Rewinding, begin, refuse, taken
from metarun.training.optimizer import apply_update, build_optimizer, clipped, learning_rate, step_rates
from metarun.training.stages import MetaGradients
from metarun.types import Algorithm, Dataset, EpisodeSpec, Params, Task


@dataclass
class State:
    """Everything that a step changes."""

    params: Params
    optimizer: torch.optim.Optimizer
    step: int = 0  # outer steps done
    best_error: float = float("inf")
    best_step: int = 0
    seconds: float = 0.0  # of training, over all sittings
    spent: dict[str, float] = field(default_factory=dict)  # seconds of these on validation, measures, probes
    rewinding: Rewinding | None = None  # with train.on_nonfinite=rewind
    carry: Carry = field(default_factory=dict)  # what the learner takes along: replay buffers, a target network


class Watcher(Protocol):
    """Who is told what happened; returns nothing, decides nothing but when to stop."""

    def stepped(self, state: State) -> None: ...

    def trained(self, state: State, values: Values) -> None: ...

    def probed(self, state: State, values: Values) -> None: ...

    def validated(self, state: State, evaluation: Evaluation, improved: bool) -> None: ...

    def checkpoint(self, state: State) -> None: ...

    def noted(self, message: str) -> None: ...

    def stop_requested(self) -> bool: ...


@dataclass(frozen=True)
class Trainer:
    """What a training run is made of; `train` runs it."""

    algorithm: Algorithm
    dataset: Dataset
    spec: EpisodeSpec
    regularization: Regularization
    settings: TrainConfig
    optim: OptimConfig
    placement: Placement
    seed: int
    validate: Callable[[Params], Evaluation]
    measures: StepMeasures | None = None
    probe: Callable[[Params], Values] | None = None
    probe_every: int = 1

    def start(self) -> State:
        params = self.placement.params(self.regularization.init(self.algorithm.init(self.seed)))
        trained = {name: params[name] for name in self.regularization.trained(params)}
        state = State(params, build_optimizer(self.optim, trained))
        if isinstance(self.algorithm, CarryingLearner):
            state.carry = self.placement.params(self.algorithm.carry(params))
        return state

    def tasks(self, step: int, which: range | None = None) -> Task:
        """Those of a step that this process needs, or some of them."""
        return self.placement.task(self.dataset.episodes("train", self.seed, step, which or self.own_tasks, self.spec))

    @property
    def own_tasks(self) -> range:
        """All; of several ranks, its share. The first of them also has what concerns all tasks together."""
        team, count = self.placement.team, self.settings.tasks
        return range(count) if team.first and self.regularization.joins_tasks else team.todo(count)


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
        return WISHES[0]
    limit = trainer.settings.max_minutes
    over = limit is not None and state.seconds >= 60 * limit
    return WISHES[1] if over and trainer.placement.team.first else ""


def outer_step(trainer: Trainer, state: State, meta_gradient: Callable[..., Any], watcher: Watcher) -> str:
    """Draw tasks, differentiate, check, and only then move the meta-parameters. Of several ranks all return why one of
    them wishes to stop."""
    tasks = trainer.tasks(state.step)
    trainer.regularization.set_weights(state.params, state.step)
    params, tasks = prepared(trainer, state, tasks)
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
    found = meta_gradient(*with_all_noise(learner, params, tasks, trainer.seed, state.step, first))
    if team.size == 1:
        return found, ""
    return joined(team, found, trainer.settings.tasks, wish(trainer, state, watcher))


def prepared(trainer: Trainer, state: State, tasks: Task) -> tuple[Params, Task]:
    """Meta-parameters and tasks as the gradient takes them: a learner that carries state prepares both by it."""
    if not state.carry:
        return state.params, tasks
    learner: Any = trainer.algorithm  # only one that carries anything has given the state a carry
    state.carry, params, tasks = learner.prepared(state.params, state.carry, tasks, trainer.seed, state.step)
    return params, tasks


def settle(trainer: Trainer, state: State) -> None:
    """What is carried follows the new meta-parameters."""
    if state.carry:
        learner: Any = trainer.algorithm
        state.carry = learner.settled(state.params, state.carry)


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
        values |= learner.told(state.carry)
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
