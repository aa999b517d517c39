"""Distances to both posterior means against a loop over tasks, the threshold by hand, runs of several vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.analyses import TINY, ignore, refusal, run_in_context

import metarun
from metarun.analyses.analysis import Context, run_analysis
from metarun.analyses.bayes_gap import BayesGap, find_threshold
from metarun.errors import SettingError
from metarun.jobs.train_together import train_runs
from metarun.storage.run_folder import RunFolder
from metarun.training import checkpoint
from metarun.types import Batch, Split

DATA = ["data=linear", "data.features=2", "data.centres=[0]", "data.scales=[1]", "data.spread=1", "data.noise=0.5"]
DATA += ["data.shots=4", "data.test_queries=5"]
LEARNERS = {
    "maml": ["algo=maml", "model=linear"],
    "cnp": ["algo=cnp", "model=mlp", "model.hidden=[8]", "algo.representation=8"],  # predicts Gaussians
}


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_run_is_measured_against_both_posterior_means(learner: str, tmp_path: Path) -> None:
    """Task by task; of new tasks the posterior mean is ridge regression."""
    settings = [*TINY[:-2], *DATA, *LEARNERS[learner], "data.train_vectors=3", "train.steps=8"]
    config = metarun.compose(settings)
    source = RunFolder(metarun.run(config, tmp_path / "run").folder)
    last = checkpoint.load(source.last)
    zeros = {name: torch.zeros_like(w) for name, w in last["params"].items()}
    checkpoint._write(source.best, last | {"params": zeros})  # the best weights are not measured
    where = Context(config, source, tmp_path / "analysis", train_runs)
    (row,), summary = run_in_context(where, BayesGap(None, 60))  # more than are drawn at once

    experiment, learned = where.run.experiment, where.run.experiment.tested
    dataset: Any = experiment.dataset
    vectors = torch.from_numpy(dataset._vectors[1])  # tests/data/test_linear.py has them from the data
    splits: dict[str, Split] = {"new": "test", "own": "train"}
    for which, split in splits.items():
        values: dict[str, list[float]] = {}
        drawn = experiment.dataset.episodes(split, 0, 0, range(60), experiment.test_spec)
        for i in range(60):
            x, y, queries, targets = (v[i].double() for batch in drawn for v in batch)
            logs = torch.distributions.Normal(vectors @ x.T, 0.5).log_prob(y[:, 0]).sum(1)
            pool = queries @ (logs.softmax(0) @ vectors)
            prior = queries @ torch.linalg.solve(x.T @ x + 0.25 * torch.eye(2), x.T @ y[:, 0])
            support = Batch(*(v[i] for v in drawn.support))
            *_, state = learned.adaptations(last["params"], support, learned.test_inner_steps)
            f = learned.predict(state, drawn.query.x[i])[:, 0].double()
            pairs = {"to_pool": f - pool, "to_prior": f - prior, "between": pool - prior}
            pairs |= {"mse": f - targets[:, 0], "mse_pool": pool - targets[:, 0], "mse_prior": prior - targets[:, 0]}
            distances = {name: float(pair.square().mean()) for name, pair in pairs.items()}
            for name, distance in (distances | {"difference": distances["to_pool"] - distances["to_prior"]}).items():
                values.setdefault(name, []).append(distance)
        for name, numbers in values.items():
            if f"{which}_{name}" in row:
                assert row[f"{which}_{name}"] == pytest.approx(np.mean(numbers), rel=1e-4)
                half = 1.96 * np.std(numbers, ddof=1) / np.sqrt(60)
                assert row[f"half_{which}_{name}"] == pytest.approx(half, rel=1e-4)
    assert {"new_mse_prior", "own_between", "own_difference"} <= {*row}
    assert row["vectors"] == 3
    assert summary["threshold"] is None
    assert summary["message"].startswith("3 vectors: predictions on new tasks are ")


def test_a_training_for_each_number_of_vectors(tmp_path: Path) -> None:
    context = settings_of(tmp_path, *DATA, *LEARNERS["maml"])
    rows, summary = run_in_context(context, BayesGap((1, 4, None), 20))
    configs = {p.parent.name: yaml.safe_load(p.read_text()) for p in tmp_path.glob("runs/*/config.yaml")}
    vectors = {name: config["data"]["train_vectors"] for name, config in configs.items()}
    assert vectors == {"vectors-1": 1, "vectors-4": 4, "vectors-all": None}
    few, some, unlimited = rows
    assert unlimited["new_to_pool"] == unlimited["new_to_prior"]
    assert unlimited["new_between"] == 0
    assert few["new_between"] > some["new_between"] > 0
    assert few["new_mse_prior"] == unlimited["new_mse_prior"] < few["new_mse_pool"]
    assert "1 vector: predictions on new tasks are" in summary["message"]
    assert "no threshold: the nearer of the two does not change" in summary["message"]


def settings_of(folder: Path, *settings: str) -> Context:
    """The context of an analysis of settings alone."""
    return Context(metarun.compose([*TINY[:-2], *settings]), None, folder, train_runs)


def row_of(vectors: int | None, pool: float | None, prior: float | None, between: float | None = 9) -> dict[str, Any]:
    return {"vectors": vectors, "new_to_pool": pool, "new_to_prior": prior, "new_between": between}


def test_the_threshold_is_where_the_distances_are_equal() -> None:
    """Their ratio (N / 30)^1.5 is 1 at N = 30, whichever numbers are measured and in which order."""
    rows = [row_of(n, 0.1 * (n / 30) ** 1.5, 0.1) for n in (64, 4, 16, 256)]
    low, high, middle = find_threshold(rows) or (0, 0, 0.0)
    assert (low, high) == (16, 64)
    assert middle == pytest.approx(30)
    more = [row_of(None, 0.1, 0.1, 0), row_of(8, None, None, None), row_of(24, 0.5, 0.2, 0.1)]  # of no account
    assert find_threshold([*rows, *more]) == (low, high, middle)
    assert find_threshold(rows[1:3]) is None
    assert find_threshold([rows[0], rows[3]]) is None  # nearer to all tasks from the first on: below what was measured


def test_a_run_that_diverged_has_no_distances(tmp_path: Path) -> None:
    context = settings_of(tmp_path, *DATA, *LEARNERS["maml"], "algo.inner_lr=1e30")
    (row, _), summary = run_in_context(context, BayesGap((1, 2), 4))
    assert row == {"vectors": 1, "diverged": True}
    assert "1 vector: predictions on new tasks are none from" in summary["message"]


def test_what_has_no_posterior_means_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    def run(analysis: BayesGap, *more: str) -> str:
        return refusal(lambda: run_analysis(analysis, settings_of(tmp_path, *more), ignore))

    unknown = "analysis=bayes_gap: the posterior mean of these data is not known; choices: data=linear"
    assert run(BayesGap((2,), 4), "data=sinusoid") == unknown
    pool = "train.pool=3: must be null: it repeats rows too; set data.train_vectors"
    assert run(BayesGap((2,), 4), *DATA, *LEARNERS["maml"], "train.pool=3") == pool
    missing = "analysis.vectors=None: must be numbers to train with, as [1, 4, 16, null], or give run="
    assert run(BayesGap(None, 4), *DATA, *LEARNERS["maml"]) == missing
    assert not (tmp_path / "runs").exists()
    for vectors in ((), (1, 1), (0, None)):
        with pytest.raises(SettingError, match=r"vectors=.*: must be different whole numbers of at least 1, or null"):
            BayesGap(vectors, 4)
