"""The outer loop. It knows tasks, gradients and steps; it names no algorithm, data set or regularizer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import grad_and_value

from metarun.batching import over_tasks
from metarun.compilation import compiled, compiles
from metarun.config import OptimConfig, TrainConfig
from metarun.device import Placement
from metarun.diagnostics.step import StepMeasures, Values, update_measures
from metarun.errors import NonFinite
from metarun.evaluation import Evaluation
from metarun.outer import apply_update, build_optimizer, clipped, learning_rate, step_rates
from metarun.regularization import Regularization, with_noise
from metarun.types import Algorithm, Dataset, EpisodeSpec, Metrics, Params, Task


class MetaGradient(NamedTuple):
    """One outer step's gradient, and what there is to say of it."""

    mean: Params  # of the tasks' meta-gradients, plus the gradient of what the penalties add once
    grads: Params  # each task's own, [T, ...]
    metrics: Metrics  # each [T]
    penalty: Tensor  # all that the penalties add to the outer objective
    finite: Tensor  # whether all of `mean` is


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
        return State(params, build_optimizer(self.optim, trained))

    def tasks(self, step: int) -> Task:
        drawn = self.dataset.episodes("train", self.seed, step, range(self.settings.tasks), self.spec)
        return self.placement.task(drawn)


def train(trainer: Trainer, state: State, watcher: Watcher) -> str:
    """Run outer steps until all are done, time is up or a stop is requested; returns which ("completed", ...)."""
    meta_gradient = batched_meta_gradient(trainer)
    if compiles(trainer.placement, state.params, trainer.settings.steps):
        watcher.noted(
            "compiling the outer step first, half a minute unless an earlier run has (device.compile=off goes without)"
        )
        meta_gradient = compiled(meta_gradient, trainer.placement)
    sitting = Clock(state.seconds)
    while state.step < trainer.settings.steps:
        outer_step(trainer, state, meta_gradient, watcher)
        state.seconds = sitting.seconds()
        after_step(trainer, state, watcher)
        if watcher.stop_requested():
            return stopped(state, watcher, "interrupted")
        limit = trainer.settings.max_minutes
        if limit is not None and state.seconds >= 60 * limit:
            return stopped(state, watcher, "time is up")
    return "completed"


def outer_step(trainer: Trainer, state: State, meta_gradient: Callable[..., MetaGradient], watcher: Watcher) -> None:
    """Draw tasks, differentiate, check, and only then move the meta-parameters."""
    tasks = trainer.tasks(state.step)
    trainer.regularization.set_weights(state.params, state.step)
    found = meta_gradient(*with_noise(trainer.algorithm.model, state.params, tasks, trainer.seed, state.step))
    culprit, others = nonfinite_part(found)
    if culprit:
        refuse(trainer, f"at step {state.step}, {culprit}, seed {trainer.seed}{others}", watcher)
        state.step += 1
        return
    logged = due(state.step + 1, trainer.settings.log_every, trainer.settings.steps)
    values = described(trainer, state, found, tasks) if logged else {}
    before = {k: v.clone() for k, v in state.params.items()} if logged and trainer.measures else None
    lr = learning_rate(trainer.optim, state.step, trainer.settings.steps)
    apply_update(state.optimizer, state.params, clipped(found.mean, trainer.optim.clip), lr)
    proximal_step(trainer, state, lr)
    state.step += 1
    if logged:
        moved = update_measures(before, state.params) if before else {}
        watcher.trained(state, values | moved | {"lr": lr})


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


def stopped(state: State, watcher: Watcher, why: str) -> str:
    watcher.checkpoint(state)
    return why


def batched_meta_gradient(trainer: Trainer) -> Callable[[Params, Task], MetaGradient]:
    """theta, tasks -> their meta-gradient."""
    place, count = trainer.placement, trainer.settings.tasks
    chunk = place.chunk(trainer.spec, trainer.dataset.input_shape())
    per_task = over_tasks(trainer.algorithm.meta_grad, count, chunk, place.memory_format)
    regularization = trainer.regularization

    def shared(params: Params, tasks: Task) -> Tensor:
        return regularization.shared(trainer.algorithm, params, tasks)

    def meta_gradient(params: Params, tasks: Task) -> MetaGradient:
        grads, metrics = per_task(params, tasks)
        trained = regularization.trained(params)
        mean = {k: grads[k].mean(0) for k in trained}
        extra, penalty = grad_and_value(shared)(params, tasks)
        total = {k: mean[k] + extra[k] for k in trained}
        penalty = penalty + metrics["penalty"].mean() if "penalty" in metrics else penalty
        finite = torch.stack([v.isfinite().all() for v in (*total.values(), metrics["loss"])]).all()
        return MetaGradient(total, {k: grads[k] for k in trained}, metrics, penalty, finite)

    return meta_gradient


def nonfinite_part(found: MetaGradient) -> tuple[str, str]:
    """Where a NaN or an infinity came from, and who else had one; empty when all is finite."""
    if found.finite:
        return "", ""
    rows = [g.flatten(1) if g.ndim > 1 else g[:, None] for g in (*found.grads.values(), found.metrics["loss"])]
    sound = torch.stack([r.isfinite().all(1) for r in rows]).all(0)
    tasks = torch.nonzero(~sound).flatten().tolist()
    if tasks:
        others = f" (and {len(tasks) - 1} more of {len(sound)} tasks)" if len(tasks) > 1 else ""
        return f"task {tasks[0]}", others
    return "the penalty or the mean over tasks", ""


def refuse(trainer: Trainer, where: str, watcher: Watcher) -> None:
    """Keep a non-finite step away from the meta-parameters: skip it, or stop the run."""
    what = f"non-finite loss or meta-gradient {where}"
    if trainer.settings.on_nonfinite == "stop":
        raise NonFinite(what)
    watcher.noted(f"skipped: {what}")


def described(trainer: Trainer, state: State, found: MetaGradient, tasks: Task) -> Values:
    """The numbers of one step, its measures of convergence and stability with them."""
    values = describe(found)
    if trainer.measures:
        with timed(state, "measures"):
            values |= trainer.measures(state.params, found.grads, tasks)
    return values


def describe(found: MetaGradient) -> Values:
    """The tasks' own metrics, averaged, and the penalty."""
    values = {name: float(v.double().mean()) for name, v in found.metrics.items() if name != "penalty"}
    penalty = float(found.penalty)
    return values | {"penalty": penalty} if penalty else values


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
