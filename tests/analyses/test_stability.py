"""What is measured of two trained runs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.analyses import make_context

from metarun.analyses.stability import (
    Outcome,
    choose_replaced,
    compare_outcomes,
    evaluate_last_weights,
    generalisation_gap,
)
from metarun.training.evaluation import adaptation_curves


def some(new: list[float], own: list[float] | None = None, weight: float = 0.0) -> Outcome:
    losses = torch.tensor(new, dtype=torch.float64)
    owned = None if own is None else torch.tensor(own, dtype=torch.float64)
    return Outcome({"w": torch.tensor([3.0, 4.0 + weight])}, losses, losses, owned, owned)


def test_the_change_between_two_runs_is_that_of_weights_and_of_each_tasks_loss() -> None:
    found = compare_outcomes(some([1.0, 2.0, 5.0, 4.0, 0.0]), some([1.5, 2.0, 2.0, 5.0, 0.0], weight=2.0))
    assert found["distance"] == pytest.approx(2.0)
    assert found["relative"] == pytest.approx(2.0 / 5.0)
    assert found["mean"] == pytest.approx((0.5 + 0 + 3 + 1 + 0) / 5)
    assert (found["sup"], found["median"]) == (3.0, 0.5)
    assert all(math.isnan(v) for v in compare_outcomes(None, some([1.0])).values())


def test_the_gap_is_new_tasks_less_own_ones_with_the_interval_of_the_new_ones(tmp_path: Path) -> None:
    experiment = make_context(tmp_path).assemble({"train.pool": 2})
    found = generalisation_gap(experiment, some([1.0, 2.0, 6.0], own=[0.5, 1.5]))
    assert found["gap"] == pytest.approx(3.0 - 1.0)
    assert found["gap_half"] == pytest.approx(1.96 * np.std([1, 2, 6], ddof=1) / math.sqrt(3))
    assert generalisation_gap(experiment, some([1.0, 2.0]))["gap"] is None
    other = make_context(tmp_path, "algo.train_shots=3").assemble({"train.pool": 2})
    assert generalisation_gap(other, some([1.0], own=[1.0]))["gap"] is None  # losses on 3 and on 10 shots are no pair


def test_losses_are_those_of_the_last_weights_on_the_test_tasks_and_on_the_pool(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    changes = {"train.pool": 3}
    run, experiment = context.train("one", changes), context.assemble(changes)
    found = evaluate_last_weights(experiment, run, 5)
    assert found is not None
    stored = torch.load(run.folder.last, weights_only=True)["params"]
    assert all(torch.equal(found.params[k], stored[k]) for k in stored)
    pool = experiment.dataset.tasks(experiment.train_spec)  # type: ignore[attr-defined]
    test = experiment.dataset.episodes("test", 0, 0, range(5), experiment.test_spec)
    for tasks, losses in ((pool, found.own), (test, found.new)):
        assert losses is not None
        by_hand, _ = adaptation_curves(experiment.algorithm, stored, tasks, (2,), None)
        torch.testing.assert_close(losses, by_hand[:, 0].double())


def test_replaced_tasks_are_spread_through_the_pool() -> None:
    assert choose_replaced(3, 30) == [0, 10, 20]
    assert choose_replaced(2, 2) == [0, 1]
    assert choose_replaced(1, 7) == [0]
