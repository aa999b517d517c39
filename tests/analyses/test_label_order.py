"""Orders of labels: against permuted heads, which are the same thing, and learners that do not depend on the order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import TINY

import metarun
from metarun.analyses.analysis import Context
from metarun.analyses.label_order import LabelOrder, choose_orders, reorder
from metarun.errors import UserError
from metarun.jobs.train_together import train_runs
from metarun.storage.run_folder import RunFolder
from metarun.training.evaluation import EPISODE_SEED
from metarun.types import Batch, Task

CLASSES = ["data=logistic", "data.ways=3", "data.shots=2", "data.features=3", "data.common=1", "data.test_queries=20"]


def context(tmp_path: Path, *overrides: str) -> Context:
    folder, config = RunFolder(tmp_path / "run"), metarun.compose([*TINY, "optim.lr=0.2", *overrides])
    metarun.run(config, folder.path)
    return Context(config, folder, tmp_path / "analysis", train_runs)


def test_another_order_of_the_labels_is_another_order_of_the_heads_rows(tmp_path: Path) -> None:
    """Class k called pi(k) starts from row pi(k) of the head."""
    where = context(tmp_path, "algo=maml", *CLASSES)
    analysis = LabelOrder(tasks=4, orders=10)
    cells = list(analysis.cells(where))
    rows = [cell | analysis.measure(where, cell) for cell in cells]
    experiment, learner = where.run.experiment, where.run.learner
    tasks = experiment.dataset.episodes("test", EPISODE_SEED, 0, range(4), experiment.test_spec)
    orders = choose_orders(3, 10, 0)
    assert len(orders) == 6
    for t, row in enumerate(rows):
        task, probabilities, scores = Task(*(Batch(b.x[t], b.y[t]) for b in tasks)), [], []
        for order in orders:
            permuted = {name: w[order] for name, w in where.run.params.items()}
            *_, adapted = learner.adaptations(permuted, task.support, learner.test_inner_steps)
            probabilities.append(learner.predict(adapted, task.query.x).softmax(-1))
            scores.append(float((probabilities[-1].argmax(-1) == task.query.y).double().mean()))
        assert row["scores"] == pytest.approx(scores)
        together = torch.stack(probabilities).mean(0).argmax(-1)
        assert row["ensemble"] == pytest.approx(float((together == task.query.y).double().mean()))
    summary = analysis.summarise(where, rows)
    assert summary["gap"] == pytest.approx(np.mean([max(r["scores"]) - min(r["scores"]) for r in rows]))
    assert summary["gap"] > 0.05
    assert summary["apart"] > 0.05
    assert summary["as_drawn"] == pytest.approx(np.mean([r["scores"][0] for r in rows]))
    assert "in the best order of each task" in summary["message"]
    assert len(analysis.draw(rows, summary)) == 1


def test_a_learner_without_a_head_does_not_depend_on_the_order(tmp_path: Path) -> None:
    where = context(tmp_path, "algo=protonet", *CLASSES, "model=mlp", "model.hidden=[4]")
    analysis = LabelOrder(tasks=2, orders=3)
    rows = [cell | analysis.measure(where, cell) for cell in analysis.cells(where)]
    summary = analysis.summarise(where, rows)
    assert (summary["gap"], summary["apart"]) == (0, pytest.approx(0, abs=1e-5))
    assert summary["message"].endswith("no prediction depends on it")


def test_orders_are_different_and_the_first_is_that_of_the_task() -> None:
    orders = choose_orders(5, 24, 3)
    assert orders[0].tolist() == [0, 1, 2, 3, 4]
    assert len({tuple(order) for order in orders.tolist()}) == 24
    task = Task(*(Batch(torch.arange(4.0)[None, :, None], torch.tensor([[0, 1, 2, 1]])) for _ in range(2)))
    assert reorder(task, torch.tensor([[0, 1, 2], [2, 0, 1]])).support.y.tolist() == [[0, 1, 2, 1], [2, 0, 1, 0]]


def test_a_regression_has_no_labels(tmp_path: Path) -> None:
    where = context(tmp_path, "algo=maml", "data=linear", "data.features=2")
    with pytest.raises(UserError, match="analysis=label_order: needs tasks with classes"):
        LabelOrder(tasks=2, orders=2).cells(where)
