"""The parts of a training run: what it is made of, the state that a step changes, and who observes it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import torch

from metarun.algorithms.objective import NoisyModel, Regularization
from metarun.compute.device import Placement
from metarun.compute.task_axis import stack_tasks
from metarun.config.schema import OptimConfig, TrainConfig
from metarun.diagnostics.step import StepMeasures, Values
from metarun.training.average import Average, average_of
from metarun.training.evaluation import Evaluation
from metarun.training.optimizer import build_optimizer, learning_rate, stable_rates
from metarun.types import (
    HEAD,
    MOMENTS,
    Algorithm,
    AlgorithmOptions,
    Dataset,
    EpisodeSpec,
    LearnerState,
    Params,
    Rates,
    StatefulLearner,
    Task,
    optional,
)

AT_ONCE = 32
"""The most outer steps of one compiled call. To begin one takes as long as two steps of a small network."""


class StopReason(Enum):
    """Why a run stops before its last step; the value is the status in summary.json."""

    INTERRUPTED = "interrupted"
    TIME_IS_UP = "time is up"


@dataclass
class RewindPoint:
    """The state that `train.on_nonfinite=rewind` goes back to, and how often it has."""

    step: int
    params: Params
    optimizer: dict[str, Any]
    in_a_row: int = 0  # rewinds to this point
    total: int = 0  # rewinds of the run
    carry: LearnerState = field(default_factory=dict)
    average: Average | None = None


@dataclass
class State:
    """Everything that an outer step changes."""

    params: Params
    optimizer: torch.optim.Optimizer
    step: int = 0  # outer steps done
    best_error: float = float("inf")
    best_step: int = 0
    seconds: float = 0.0  # of training, over all sittings; compilation is no part of it
    spent: dict[str, float] = field(default_factory=dict)  # of these on validation, measures, probes; on compilation
    rewinding: RewindPoint | None = None  # with train.on_nonfinite=rewind
    carry: LearnerState = field(default_factory=dict)  # of a StatefulLearner
    average: Average | None = None  # with train.average=ema

    @property
    def tested(self) -> Params:
        """The meta-parameters that the test takes: the average where there is one."""
        return average_of(self.params, self.average)


class Observer(Protocol):
    """Follows a run: logs, saves checkpoints, and may ask it to stop. It changes nothing."""

    def on_step(self, state: State) -> None:
        """After each outer step."""

    def on_log(self, state: State, values: Values) -> None:
        """With the metrics of a step, every `train.log_every` steps."""

    def on_probe(self, state: State, values: Values) -> None:
        """With the measures on fixed tasks, every `diagnostics.every` steps."""

    def on_validation(self, state: State, evaluation: Evaluation, improved: bool) -> None:
        """After each validation; `improved`: it has the lowest error so far."""

    def save_checkpoint(self, state: State) -> None:
        """Every `train.checkpoint_every` steps, and where a run stops early."""

    def notify(self, message: str) -> None:
        """With a message for the user."""

    def on_work(self, label: str, done: int, total: int) -> None:
        """During work beside outer steps: compilation and the test; `total` is 0 where it has no parts to count."""

    def stop_requested(self) -> bool:
        """Whether to stop after this step."""


class CallbackOptions:
    """What a callback of the user's may have. It observes: an error in it is reported, and it is not called again."""

    on_step: Callable[[Any], None] | None = None  # with the State (training/run.py), after each outer step
    on_validation: Callable[[Any, Any], None] | None = None  # with the State and the Evaluation, after each validation
    on_end: Callable[[dict[str, Any]], None] | None = None  # with the summary, when the run ends


@dataclass(frozen=True)
class Trainer:
    """The fixed parts of a training run; `train` in loop.py runs it."""

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
    optimum: Callable[[Params], Values] | None = None
    probe: Callable[[Params, Rates], Values] | None = None
    probe_every: int = 1
    at_once: int = AT_ONCE  # steps between which nobody looks at the state; at most AT_ONCE

    def start(self, change: Callable[[Params], Params] | None = None) -> State:
        """The state before the first step; `change` replaces the first weights."""
        params = self.algorithm.init(self.seed)
        params = self.placement.move_params(self.regularization.init(change(params) if change else params))
        trained = {name: params[name] for name in self.trained_names(params)}
        average = Average() if self.settings.average == "ema" else None
        state = State(params, build_optimizer(self.optim, trained), average=average)
        if isinstance(self.algorithm, StatefulLearner):
            state.carry = self.placement.move_params(self.algorithm.init_state(params))
        return state

    @functools.cached_property
    def noisy(self) -> bool:
        """Whether the learner or its network adds noise to a step; to ask takes a tenth of a small one."""
        return any(isinstance(part, NoisyModel) for part in (self.algorithm.model, self.algorithm))

    def last_rates(self, state: State) -> Rates:
        """The rates of the step that was made last, on the scale of `stable_rates`."""
        lr = learning_rate(self.optim, state.step - 1, self.settings.steps)
        return stable_rates(state.optimizer, state.params, lr)

    def trained_names(self, params: Params) -> list[str]:
        """The names of what the outer loop moves."""
        names = self.regularization.trained_names(params)
        zero_head = optional(self.algorithm, AlgorithmOptions, "zero_head")
        return [name for name in names if not (zero_head and name.startswith(HEAD))]

    def averaged(self, params: Params) -> Params:
        """What `train.average` averages: all that the optimizer moves. An inner Adam's second moments are those of the
        last step."""
        return {name: params[name] for name in self.trained_names(params) if not name.startswith(MOMENTS)}

    def tasks(self, step: int, indices: range | None = None) -> Task:
        """The tasks of a step that this process needs, or those at `indices`; each tensor [T, ...]."""
        drawn = self.dataset.episodes("train", self.seed, step, indices or self.own_tasks, self.spec)
        return self.placement.move_task(drawn)

    def tasks_of(self, steps: Sequence[int]) -> Task:
        """Those of several steps; each tensor [len(steps), T, ...]."""
        own = self.own_tasks
        drawn = [self.dataset.episodes("train", self.seed, step, own, self.spec) for step in steps]
        return self.placement.move_task(stack_tasks(drawn))

    @property
    def own_tasks(self) -> range:
        """The indices of all tasks; of several ranks, those of this rank's share. The first rank has all of them where
        a penalty needs the tasks of a step together."""
        processes, count = self.placement.processes, self.settings.tasks
        whole = processes.is_first and self.regularization.needs_all_tasks
        return range(count) if whole else processes.nonempty_share(count)
