"""What a training run is made of, what a step changes, and who follows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from metarun.algorithms.objective import Regularization
from metarun.compute.device import Placement
from metarun.config.schema import OptimConfig, TrainConfig
from metarun.diagnostics.step import StepMeasures, Values
from metarun.training.evaluation import Evaluation
from metarun.training.optimizer import build_optimizer
from metarun.types import Algorithm, Dataset, EpisodeSpec, LearnerState, Params, StatefulLearner, Task


@dataclass
class Rewinding:
    """Where a run would go back to, and how often it has."""

    step: int
    params: Params
    optimizer: dict[str, Any]
    in_a_row: int = 0  # to this point
    total: int = 0
    carry: LearnerState = field(default_factory=dict)


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
    carry: LearnerState = field(default_factory=dict)  # what the learner takes along: replay buffers, a target network


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
        if isinstance(self.algorithm, StatefulLearner):
            state.carry = self.placement.params(self.algorithm.init_state(params))
        return state

    def tasks(self, step: int, which: range | None = None) -> Task:
        """Those of a step that this process needs, or some of them."""
        return self.placement.task(self.dataset.episodes("train", self.seed, step, which or self.own_tasks, self.spec))

    @property
    def own_tasks(self) -> range:
        """All; of several ranks, its share. The first of them also has what concerns all tasks together."""
        team, count = self.placement.team, self.settings.tasks
        return range(count) if team.first and self.regularization.joins_tasks else team.todo(count)
