"""Training with one task replaced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.analyses import make_context, run_in_context

from metarun.analyses.replace_one import ReplaceOne


def test_an_identical_run_changes_nothing_and_a_replaced_task_does(tmp_path: Path) -> None:
    rows, summary = run_in_context(make_context(tmp_path), ReplaceOne(pools=(2, 3), replaced=2, tasks=5))
    assert [(r["pool"], r["run"], r["task"]) for r in rows if r["pool"] == 2] == [
        (2, "again", None), (2, "seed", None), (2, "replaced", 0), (2, "replaced", 1),
    ]  # fmt: skip
    for row in rows:
        numbers = [row[k] for k in ("distance", "relative", "mean", "sup", "median")]
        assert all(n == 0 for n in numbers) if row["run"] == "again" else all(n > 0 for n in numbers)
        assert ("gap" in row) == (row["run"] == "again")
    assert summary["repeatable"]
    two = [r for r in rows if r["pool"] == 2 and r["run"] == "replaced"]
    assert summary["pools"][0]["sup"] == max(r["sup"] for r in two)
    assert summary["pools"][0]["mean"] == pytest.approx(np.mean([r["mean"] for r in two]))
    assert "message" in summary


def test_runs_on_a_pool_and_on_its_neighbour_differ_in_that_task_alone(tmp_path: Path) -> None:
    """A task that the few outer steps never drew changes nothing at all."""
    context = make_context(tmp_path, "train.steps=1", "train.tasks=1")
    rows, _ = run_in_context(context, ReplaceOne(pools=(3,), replaced=3, tasks=4))
    moved = [r["distance"] > 0 for r in rows if r["run"] == "replaced"]
    assert moved.count(True) == 1


def test_an_unrepeatable_run_is_reported(tmp_path: Path) -> None:
    analysis, context = ReplaceOne((2,), 1, 5), make_context(tmp_path)
    rows, _ = run_in_context(context, analysis)
    rows[0]["distance"] = 1e-9
    summary = analysis.summarise(context, rows)
    assert not summary["repeatable"]
    assert "did not give the same weights" in summary["message"]
