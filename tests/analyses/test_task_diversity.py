"""Fisher information against derivatives query by query, and the mean distance and its interval by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import TINY

import metarun
from metarun.analyses.analysis import Context
from metarun.analyses.task_diversity import TaskDiversity, embed, mean_distance, pair_distances
from metarun.errors import UserError
from metarun.jobs.train_together import train_runs
from metarun.storage.run_folder import RunFolder
from metarun.types import Batch, Task

CLASSES = ["data=logistic", "data.ways=3", "data.shots=2", "data.features=3", "data.test_queries=4"]
SMALL = ["model=mlp", "model.hidden=[4]", "model.norm=none"]


def context(tmp_path: Path, *overrides: str) -> Context:
    folder, config = RunFolder(tmp_path / "run"), metarun.compose([*TINY, *overrides])
    metarun.run(config, folder.path)
    return Context(config, folder, tmp_path / "analysis", train_runs)


@pytest.mark.parametrize(("algo", "data"), [("maml", CLASSES), ("protonet", CLASSES), ("maml", ["data=sinusoid"])])
def test_the_embedding_is_the_mean_square_of_each_derivative(algo: str, data: list[str], tmp_path: Path) -> None:
    where = context(tmp_path, f"algo={algo}", *data, *SMALL)
    learner, experiment = where.run.learner, where.run.experiment
    drawn = experiment.dataset.episodes("test", 0, 0, range(1), experiment.test_spec._replace(queries=2))
    task = Task(*(Batch(b.x[0].double(), b.y[0]) for b in drawn))
    theta = {name: w.double() for name, w in where.run.params.items()}
    classes = "logistic" in data[0]
    found = embed(learner, theta, task, classes)

    adapts = algo == "maml"
    state = [*learner.adaptations(theta, task.support, learner.test_inner_steps)][-1]
    name = next(n for n, w in theta.items() if w.ndim > 1 and not n.startswith("head"))
    weight = (state.params if adapts else theta)[name].clone().requires_grad_()
    total = torch.zeros_like(weight)
    for x in task.query.x:
        if adapts:
            values = learner.predict(state._replace(params=state.params | {name: weight}), x[None])[0]
        else:
            values = learner.predict(learner.adapt(theta | {name: weight}, task.support), x[None])[0]
        shares = values.softmax(0).detach() if classes else torch.ones_like(values)
        targets = values.log_softmax(0) if classes else values
        for share, target in zip(shares, targets, strict=True):
            total += share * torch.autograd.grad(target, weight, retain_graph=True)[0].square()
    expected = (total / len(task.query.x)).mean(1)
    assert torch.allclose(found[: len(expected)], expected, rtol=1e-9, atol=1e-15)
    assert float(expected.max()) > 0


def test_the_mean_over_pairs_and_its_jackknife() -> None:
    embeddings = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [1.0, 0.0]])
    distances = pair_distances(embeddings)
    half = 1 - np.sqrt(0.5)
    assert distances[0].tolist() == pytest.approx([0, 1, half, 0])
    mean, ci95 = mean_distance(distances)
    assert mean == pytest.approx((1 + half + 0 + half + 1 + half) / 6)
    upper = np.triu_indices(3, 1)
    left = [np.delete(np.delete(distances, i, 0), i, 1)[upper].mean() for i in range(4)]
    assert ci95 == pytest.approx(1.96 * np.sqrt(3 / 4 * np.square(left - np.mean(left)).sum()))


def test_tasks_that_are_alike_are_less_diverse(tmp_path: Path) -> None:
    diversity = []
    for i, spread in enumerate((0.05, 1.0)):
        where = context(tmp_path / str(i), "algo=protonet", *CLASSES, f"data.spread={spread}", *SMALL)
        analysis = TaskDiversity(tasks=12, queries=20)
        rows = [cell | analysis.measure(where, cell) for cell in analysis.cells(where)]
        summary = analysis.summarise(where, rows)
        diversity.append(summary["train"])
        assert summary["message"].startswith("diversity (mean cosine distance of two tasks' Fisher information): train")
        assert len(analysis.draw(rows, summary)) == 1
    assert 0 < diversity[0] < diversity[1]


def test_a_head_alone_is_no_embedding(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="analysis=task_diversity: needs a network with layers before its head"):
        TaskDiversity(tasks=3, queries=1).cells(context(tmp_path, "algo=maml", *CLASSES))
