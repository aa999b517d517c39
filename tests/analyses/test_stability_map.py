"""Trainings at each inner rate and number of inner steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from helpers.analyses import ignore, make_context, run_in_context

from metarun.analyses.analysis import Context, run_analysis
from metarun.analyses.data_amount import DataAmount
from metarun.analyses.stability_map import StabilityMap
from metarun.cli.compose import compose
from metarun.errors import UserError
from metarun.jobs.train_together import train_runs


def test_the_map_has_each_rate_by_each_number_of_steps_and_counts_what_diverged(tmp_path: Path) -> None:
    analysis = StabilityMap(rates=(1.0, 1e22), steps=(1, 2), seeds=2, train_steps=3, tasks=5)
    rows, summary = run_in_context(make_context(tmp_path), analysis)
    assert [(r["inner_lr"], r["inner_steps"], r["diverged"]) for r in rows] == [
        (0.01, 1, 0.0), (0.01, 2, 0.0), (1e20, 1, 1.0), (1e20, 2, 1.0),
    ]  # fmt: skip
    sound, broken = rows[0], rows[2]
    assert broken["figure"] is None
    assert sound["rate_curvature"] > 0
    configs = [yaml.safe_load(p.read_text()) for p in (tmp_path / "runs").glob("rate-0.01-steps-2-*/config.yaml")]
    assert [(c["train"]["steps"], c["algo"]["inner_steps"], c["algo"]["test_inner_steps"]) for c in configs] == [
        (3, 2, 2), (3, 2, 2),
    ]  # fmt: skip
    assert summary["sound"] == 2
    assert summary["best"]["figure"] == min(r["figure"] for r in rows[:2])


@pytest.mark.usefixtures("elsewhere")
def test_learners_without_inner_loop_have_no_map_but_fewer_classes(tmp_path: Path, root: Path) -> None:
    small = ["algo=protonet", "data=folder", f"data.root={root}", "data.ways=2", "data.image_size=16"]
    small += ["data.queries=1", "data.test_queries=1", "train.steps=1", "train.tasks=1", "val.tasks=2", "test.tasks=2"]
    context = Context(compose([*small, "device.threads=1", "report=false"]), None, tmp_path / "analysis", train_runs)
    with pytest.raises(UserError, match="has no inner loop with a rate to change"):
        StabilityMap((1.0,), (1,), 1, 1, 2).cells(context)
    rows, _ = run_in_context(context, DataAmount(of="classes", amounts=(2, 3), seeds=1, tasks=4))
    for row in rows:
        assert row["gap"] == pytest.approx(row["train"] - row["test"])  # of an accuracy
    split = json.loads((tmp_path / "analysis/runs/classes-2-seed-0/split.json").read_text())
    assert len(split["train"]) == 2
    with pytest.raises(UserError, match=r"data.train_classes=99: must be 1 to"):
        run_analysis(DataAmount("classes", (2, 99), 1, 4), context, ignore)
