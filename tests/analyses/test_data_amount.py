"""More and more training tasks, or classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.analyses import ignore, make_context, run_in_context

from metarun.analyses.analysis import run_analysis
from metarun.analyses.data_amount import DataAmount, fit_gap
from metarun.errors import SettingError, UserError


def test_amounts_of_tasks_give_both_metrics_and_their_gap(tmp_path: Path) -> None:
    rows, summary = run_in_context(make_context(tmp_path), DataAmount(of="tasks", amounts=(2, 4), seeds=2, tasks=5))
    assert [(r["amount"], r["seed"]) for r in rows] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    for row in rows:
        assert row["gap"] == pytest.approx(row["test"] - row["train"])
    assert summary["amounts"][0]["test"] == pytest.approx(np.mean([r["test"] for r in rows[:2]]))
    configs = [yaml.safe_load(p.read_text()) for p in sorted(tmp_path.glob("runs/*/config.yaml"))]
    assert [(c["train"]["pool"], c["train"]["pool_seed"], c["seed"]) for c in configs] == [
        (2, 0, 0), (2, 1, 1), (4, 0, 0), (4, 1, 1),
    ]  # fmt: skip


def test_amounts_that_cannot_be_had_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"analysis.of=classes: these data are regression"):
        run_analysis(DataAmount("classes", (2,), 1, 5), make_context(tmp_path), ignore)
    with pytest.raises(UserError, match=r"training tasks are .* 3-shot"):
        run_analysis(DataAmount("tasks", (2,), 1, 5), make_context(tmp_path, "algo.train_shots=3"), ignore)
    assert not (tmp_path / "runs").exists()


def test_the_reference_line_is_fitted_by_least_squares() -> None:
    n = [4.0, 16.0, 100.0]
    exact = fit_gap([(k, 3.0 * k**-0.5) for k in n])
    assert exact["c"] == pytest.approx(3.0)
    assert exact["exponent"] == pytest.approx(-0.5)
    noisy = [(4.0, 1.0), (16.0, 1.0), (100.0, 0.2)]
    c = np.linalg.lstsq(np.array(n)[:, None] ** -0.5, np.array([1.0, 1.0, 0.2]), rcond=None)[0][0]
    assert fit_gap(noisy)["c"] == pytest.approx(c)
    assert fit_gap([(4.0, -1.0), (16.0, 1.0)])["exponent"] is None
    assert fit_gap([]) == {"c": None, "exponent": None, "exponent_half": None}
