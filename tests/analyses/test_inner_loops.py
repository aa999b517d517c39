"""Variants of the inner loop against one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.analyses import TINY, ignore, run_in_context

from metarun.analyses.analysis import Context, run_analysis
from metarun.analyses.inner_loops import InnerLoops
from metarun.analyses.stability import (
    compare_outcomes,
    evaluate_last_weights,
)
from metarun.cli.compose import compose
from metarun.config.components import build
from metarun.errors import UserError
from metarun.jobs.train_together import train_runs

SMALL = ["experiment=stability_study", *TINY[:-2], "model.hidden=[8]", "analysis.seeds=2", "analysis.tasks=5"]
SMALL += ["analysis.pool=3", "analysis.replaced=2"]
TWO = [
    {"name": "descent", "learner": "maml", "settings": {"inner_steps": 2, "test_inner_steps": 2}},
    {
        "name": "prox, λ=1",
        "learner": "imaml",
        "settings": {"inner_steps": 3, "test_inner_steps": 3, "prox": 1.0, "inner_solver": "gradient"},
    },
]


def inner_loops(folder: Path, **changes: Any) -> tuple[Context, InnerLoops]:
    config = compose(SMALL)
    config.analysis |= {"variants": TWO, **changes}
    return Context(config, None, folder, train_runs), build("analysis", config.analysis)


def test_inner_loops_are_measured_on_the_same_tasks_with_their_cost(tmp_path: Path) -> None:
    context, analysis = inner_loops(tmp_path)
    rows, summary = run_in_context(context, analysis)
    assert [(r["variant"], r["seed"]) for r in rows] == [(v["name"], s) for v in TWO for s in (0, 1)]
    assert [(r["inner_gradients"], r["hessian_products"]) for r in rows[::2]] == [(2, 2), (3, 5)]
    configs = {p.parent.name: yaml.safe_load(p.read_text()) for p in (tmp_path / "runs").glob("*/config.yaml")}
    assert len(configs) == 2 * 2 * (1 + 2 + 1)
    assert {c["train"]["pool"] for c in configs.values()} == {3}
    chosen = configs["descent-seed-1-replaced-1"]
    assert (chosen["seed"], chosen["train"]["pool_seed"], chosen["train"]["pool_replaced"]) == (1, 1, 1)
    assert chosen["algo"]["inner_lr"] == 0.01
    floor = configs["prox_λ=1-seed-1-floor"]
    assert (floor["seed"], floor["train"]["pool_seed"], floor["train"]["pool_replaced"]) == (1001, 1, None)
    assert floor["algo"]["_target_"].endswith("IMAML")
    for row in rows:
        assert row["gap"] == pytest.approx(row["new_loss"] - row["own_loss"])
        assert row["change_sup"] >= row["change_mean"] > 0
        assert (row["runs"], row["diverged"]) == (4, 0)
        assert row["cpu_seconds"] > 0
        assert row["rate_curvature"] > 0
    assert [v["name"] for v in summary["variants"]] == [v["name"] for v in TWO]
    assert summary["variants"][0]["test"]["mean"] == pytest.approx(np.mean([r["test"] for r in rows[:2]]))
    assert (tmp_path / "gap.png").exists()
    medians = np.reshape([r["test_median"] for r in rows], (2, 2))
    best, other = (names := [v["name"] for v in TWO])[:: 1 if medians[0].mean() < medians[1].mean() else -1]
    difference = medians[names.index(other)] - medians[names.index(best)]
    (name, found), *more = summary["tests"].items()
    assert (name, more) == (other, [])
    assert found["difference"] == pytest.approx(difference.mean())
    assert found["holm"] == found["p"]


def test_a_change_is_the_mean_over_replaced_tasks_and_its_supremum_the_largest(tmp_path: Path) -> None:
    context, analysis = inner_loops(tmp_path, seeds=1, variants=TWO[:1])
    (row,), _ = run_in_context(context, analysis)
    changes = analysis.changes(TWO[0], 0)
    experiment = context.assemble(changes)
    state = {k: evaluate_last_weights(experiment, context.train(f"descent-seed-0-{k}", changes), 5)
             for k in ("base", "replaced-0", "replaced-1", "floor")}  # fmt: skip
    both = [compare_outcomes(state["base"], state[k]) for k in ("replaced-0", "replaced-1")]
    assert row["change_mean"] == pytest.approx(np.mean([c["mean"] for c in both]))
    assert row["change_sup"] == max(c["sup"] for c in both)
    assert row["floor_mean"] == compare_outcomes(state["base"], state["floor"])["mean"]


def test_variants_that_diverge_are_counted_and_drawn(tmp_path: Path) -> None:
    context, analysis = inner_loops(tmp_path, shared={"inner_lr": 1e20}, seeds=1)
    rows, summary = run_in_context(context, analysis)
    assert all(r["diverged"] == 4 and r.get("test") is None for r in rows)
    assert summary["message"] == "every variant diverged"


def refused(folder: Path, variants: list[dict[str, Any]]) -> None:
    context, analysis = inner_loops(folder, variants=variants)
    run_analysis(analysis, context, ignore)


def test_wrong_variants_are_refused_before_the_first_training(tmp_path: Path) -> None:
    wrong = {
        "did you mean imaml or maml": [{"name": "a", "learner": "immaml"}],
        "must have names of their own": [TWO[0], TWO[0]],
        "algo.proxx=1: this run has no such setting": [{"name": "a", "learner": "maml", "settings": {"proxx": 1}}],
        "is no name of a variant": [{"learner": "maml"}],
    }
    for message, variants in wrong.items():
        with pytest.raises(UserError, match=message):
            refused(tmp_path, variants)
    assert not (tmp_path / "runs").exists()
