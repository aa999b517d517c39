"""Trainers on quadratic tasks, and a watcher that writes everything down."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from helpers.quadratic import (
    LinearModel,
    QuadraticTasks,
)
from metarun.algorithms.objective import NO_REGULARIZATION, Regularization, Schedule, Term
from metarun.compute.device import Placement
from metarun.config.schema import OptimConfig, TrainConfig
from metarun.training.evaluation import Evaluation
from metarun.training.run import State, Trainer
from metarun.types import EpisodeSpec, Params

CPU = Placement(torch.device("cpu"), torch.float64, None, False)


MODEL = LinearModel(3, 1)


DATA = QuadraticTasks(MODEL)


SPEC = EpisodeSpec(1, 6, 5)


@dataclass
class RecordingObserver:
    """A watcher that writes everything down, and asks to stop after so many steps."""

    stop_after: int | None = None
    values: dict[int, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    events: list[tuple[str, int]] = field(default_factory=list)

    def on_step(self, state: State) -> None:
        self.events.append(("step", state.step))

    def on_log(self, state: State, values: dict[str, float]) -> None:
        self.values[state.step] = values

    def on_validation(self, state: State, evaluation: Evaluation, improved: bool) -> None:
        self.events.append(("improved" if improved else "validated", state.step))

    def save_checkpoint(self, state: State) -> None:
        self.events.append(("checkpoint", state.step))

    def notify(self, message: str) -> None:
        self.notes.append(message)

    def on_work(self, label: str, done: int, total: int) -> None:
        self.notes.append(label)

    def stop_requested(self) -> bool:
        return self.stop_after is not None and ("step", self.stop_after) in self.events


def no_validation(params: Params) -> Evaluation:
    ones = torch.ones(1, 2)
    return Evaluation((0,), ones, ones, 0, False, "")


def regularization_of(penalty: Any, weight: float) -> Regularization:
    return Regularization((Term("penalty", penalty, Schedule(weight)),))


def trainer_of(
    algorithm: Any,
    dataset: Any = DATA,
    settings: TrainConfig | None = None,
    optim: OptimConfig | None = None,
    penalty: Any = None,
    weight: float = 1.0,
    seed: int = 0,
    validate: Any = no_validation,
) -> Trainer:
    return Trainer(
        algorithm=algorithm,
        dataset=dataset,
        spec=SPEC,
        regularization=regularization_of(penalty, weight) if penalty else NO_REGULARIZATION,
        settings=settings or TrainConfig(steps=4, tasks=3, log_every=1, eval_every=100, checkpoint_every=100),
        optim=optim or OptimConfig(name="sgd", lr=1.0, schedule="linear"),
        placement=CPU,
        seed=seed,
        validate=validate,
    )
