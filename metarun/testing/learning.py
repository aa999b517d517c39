"""Whether an algorithm learns: sixty outer steps on easy tasks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from metarun.algorithms.objective import NO_REGULARIZATION
from metarun.config.schema import TrainConfig
from metarun.testing.algorithm_checks import AlgorithmCase, place
from metarun.testing.episodes import EASY
from metarun.testing.failure import expect
from metarun.training.evaluation import Evaluator
from metarun.training.loop import train
from metarun.training.run import Trainer

STEPS, TASKS, VALIDATION_TASKS = 60, 8, 40
NEVER = 1000  # steps


class _Nobody:
    """An observer that does not look."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def check_learning(case: AlgorithmCase) -> None:
    """Sixty steps halve the validation error of tasks that differ little.

    Untrained, the error is that of predicting about 0 or of guessing; what the tasks share is learned in 60 steps of 8
    tasks, and takes away five sixths of the first and two thirds of the second error. Half is asked for. Of a
    log-likelihood, whose error is a logarithm, that the density at the targets doubles. What a learner that acts gains
    by so few steps is nothing.
    """
    if case.kind not in EASY:
        return
    dataset, spec = EASY[case.kind]
    algorithm, optim = case.build_easy(dataset, spec.ways)
    placement = place(torch.float32)
    validator = Evaluator(dataset, "val", spec, VALIDATION_TASKS, (algorithm.test_inner_steps,), placement)
    trainer = Trainer(
        algorithm=algorithm,
        dataset=dataset,
        spec=spec,
        regularization=NO_REGULARIZATION,
        settings=TrainConfig(steps=STEPS, tasks=TASKS, log_every=NEVER, eval_every=NEVER, checkpoint_every=NEVER),
        optim=optim,
        placement=placement,
        seed=0,
        validate=lambda params: validator(algorithm, params),
    )
    state = trainer.start()
    before = validator(algorithm, state.params).error
    watcher: Any = _Nobody()
    train(trainer, state, watcher)
    after = validator(algorithm, state.params).error
    enough = before - math.log(2) if algorithm.loss.signed else before / 2
    found = f"{STEPS} outer steps take the validation error from {before:.3g} to {after:.3g}, not below {enough:.3g}"
    expect(after < enough, found, "a gradient with the wrong sign or scale, or settings for a longer training")
