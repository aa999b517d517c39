"""The weights of a run, adapted at test with other settings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.analyses import POINTS, Run, analyse, train

import metarun
from metarun.analyses.analysis import Context
from metarun.analyses.sensitivity import robustness
from metarun.jobs.train_together import train_runs
from metarun.storage.run_folder import RunFolder


def test_the_robustness_score_is_the_mean_drop_from_the_tuned_cell() -> None:
    found = robustness(0.9, 0.2, [0.8, 0.95, 0.2], higher_is_better=True)
    assert found["mean_drop"] == pytest.approx((0.1 - 0.05 + 0.7) / 3)
    assert found["gain_lost"] == pytest.approx((0.1 - 0.05 + 0.7) / 0.7 / 3)
    error = robustness(1.0, 5.0, [2.0, 0.5], higher_is_better=False)
    assert (error["mean_drop"], error["gain_lost"]) == pytest.approx((0.25, 0.0625))


def test_cells_that_diverge_make_a_run_no_more_robust() -> None:
    calm = robustness(1.0, 5.0, [2.0, 2.0], higher_is_better=False)
    wild = robustness(1.0, 5.0, [2.0, None], higher_is_better=False)
    huge = robustness(1.0, 5.0, [2.0, 1e9], higher_is_better=False)
    assert wild["gain_lost"] == huge["gain_lost"] == pytest.approx((0.25 + 1) / 2)
    assert calm["gain_lost"] == pytest.approx(0.25)
    assert (wild["cells"], wild["diverged"], huge["diverged"], calm["diverged"]) == (2, 1, 1, 0)
    assert wild["mean_drop"] == huge["mean_drop"] == pytest.approx(1.0)  # the mean over the other cells


def test_a_cell_has_diverged_beyond_a_hundred_times_the_metric_of_the_run_or_without_adaptation() -> None:
    found = robustness(1.0, 5.0, [499.0, 501.0], higher_is_better=False)
    assert (found["mean_drop"], found["diverged"]) == (pytest.approx(498), 1)
    likelihood = robustness(0.5, -2.0, [-199.0, -201.0], higher_is_better=True)
    assert (likelihood["mean_drop"], likelihood["diverged"]) == (pytest.approx(199.5), 1)


def test_there_is_no_share_of_a_gain_where_adaptation_gains_nothing() -> None:
    assert robustness(5.0, 5.0, [6.0], higher_is_better=False)["gain_lost"] is None
    assert robustness(5.0, None, [6.0], higher_is_better=False)["gain_lost"] is None
    assert robustness(None, 5.0, [6.0], higher_is_better=False)["mean_drop"] is None
    assert robustness(1.0, 5.0, [], higher_is_better=False)["mean_drop"] is None


def test_the_tuned_cell_has_the_result_of_the_run(points: Run) -> None:
    few = ["analysis.tasks=6", "analysis.rates=[0.5,4]", "analysis.steps=[1,5]"]
    summary, rows, _ = analyse(points, "sensitivity", *few)
    own = json.loads((points[1] / "summary.json").read_text())
    assert summary["tuned"]["value"] == pytest.approx(own["mean"], rel=1e-6)
    assert [r["inner_lr"] for r in rows] == [0.005, 0.01, 0.04]
    assert not any("prox" in r for r in rows)  # this learner has none
    assert (summary["steps"], summary["cells"], summary["diverged"]) == ([0, 1, 3, 5], 8, 0)
    assert summary["message"].startswith("the run's own setting (rate 0.01, 3 steps): ")
    assert "\n8 other settings: " in summary["message"]
    values = [r[f"after_{k}"] for r in rows for k in (1, 3, 5)]
    tuned, before = summary["tuned"]["value"], rows[0]["after_0"]
    others = [v for v in values if v != tuned]
    assert summary["mean_drop"] == pytest.approx(np.mean([v - tuned for v in others]))
    assert summary["gain_lost"] == pytest.approx(np.mean([min(1, (v - tuned) / (before - tuned)) for v in others]))
    assert summary["best"]["value"] == min(values)


def test_learned_rates_are_scaled_as_they_were_learned(folder: Path) -> None:
    """They only begin at `algo.inner_lr`: other values of it change nothing at test."""
    run = train(folder / "metasgd", "algo=metasgd", *POINTS)
    _, rows, _ = analyse(run, "sensitivity", "analysis.tasks=6", "analysis.rates=[0.5]", "analysis.steps=[1]")
    context = Context(metarun.compose(run[0]), RunFolder(run[1]), run[1], train_runs)
    experiment, params = context.run.experiment, context.run.params
    assert [r["inner_lr"] for r in rows] == [0.005, 0.01]
    for row, factor in zip(rows, (0.5, 1.0), strict=True):
        scaled = {name: factor * p if name.startswith("rates.") else p for name, p in params.items()}
        found = experiment.evaluator("test", 6, (1,))(experiment.tested, scaled)
        assert row["after_1"] == pytest.approx(float(found.scores[0].double().mean()), rel=1e-6)
    assert rows[0]["after_1"] != rows[1]["after_1"]


def test_a_proximal_learner_has_its_meta_gradient_over_lambda_and_solver_steps(folder: Path) -> None:
    """With lambda far above the curvature the system is positive definite, and conjugate gradient solves it; then the
    implicit gradient is that through many inner steps."""
    strong = [
        "algo.prox=400",
        "algo.inner_lr=0.002",
        "algo.inner_steps=30",
        "algo.cg_steps=3",
        "algo.cg_damping=0",
    ]
    run = train(
        folder / "imaml",
        "algo=imaml",
        "algo.curvature=hessian",
        *strong,
        *POINTS,
        "train.steps=1",
        "device.precision=float64",
    )
    few = ["analysis.tasks=2", "analysis.cg_tasks=2", "analysis.unroll_steps=30", "analysis.cg_steps=[1,20]"]
    lists = ["analysis.strengths=[0.5]", "analysis.rates=[1]", "analysis.steps=[1]"]
    summary, rows, where = analyse(run, "sensitivity", *few, *lists)
    assert sum("after_0" in r for r in rows) == 2
    table = [r for r in rows if "cg_steps" in r]
    assert [(r["prox"], r["cg_steps"]) for r in table] == [(p, k) for p in (200.0, 400.0) for k in (1, 3, 20)]
    for one, three, many in (table[:3], table[3:]):
        assert one["cg_residual"] > three["cg_residual"] > many["cg_residual"]
        assert one["implicit_error"] > many["implicit_error"]
        assert many["cg_negative"] == 0
    last = table[-1]  # with the smaller lambda a minimiser lies at a kink of the ReLU, where no gradient vanishes
    assert last["stationarity"] < 1e-12
    assert last["implicit_error"] < 1e-12
    assert (summary["tuned"]["prox"], summary["tuned"]["cg_steps"]) == (400.0, 3)
    for name in ("cg_residual", "implicit_error"):
        assert (where / f"{name}.png").stat().st_size > 1000
