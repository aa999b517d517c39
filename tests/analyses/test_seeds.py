"""The same settings with several seeds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from helpers.analyses import TINY, make_context, run_in_context

from metarun.analyses.analysis import Context
from metarun.analyses.seeds import Seeds, find_source_run
from metarun.cli.compose import compose
from metarun.jobs.train import train_job
from metarun.jobs.train_together import train_runs
from metarun.report.statistics.variance import variance_components
from metarun.storage.run_folder import RunFolder


def test_the_run_to_analyse_is_one_of_the_seeds_and_the_others_are_trained(tmp_path: Path) -> None:
    source = RunFolder(tmp_path / "run")
    config = compose([*TINY, "seed=1"])
    train_job(config, source, quiet=True)
    context = Context(config, source, tmp_path / "analysis", train_runs)
    rows, summary = run_in_context(context, Seeds(seeds=3))
    assert [r["seed"] for r in rows] == [1, 0, 2]
    assert sorted(p.name for p in (tmp_path / "analysis/runs").iterdir()) == ["seed-0", "seed-2"]
    assert rows[0]["mean"] == source.read_summary()["mean"]
    means = [r["mean"] for r in rows]
    assert summary["mean"] == pytest.approx(np.mean(means))
    assert summary["half"] == pytest.approx(4.302653 * np.std(means, ddof=1) / math.sqrt(3), rel=1e-5)
    scores = np.array([r["scores"] for r in rows])
    assert scores.mean(1) == pytest.approx(means, rel=1e-5)
    assert summary["components"]["seed_raw"] == pytest.approx(variance_components(scores).seed_raw)
    if summary["convergence"]:  # some seed improved in its two validations
        assert len(summary["convergence"]["steps"]) == 3


def test_a_run_with_other_settings_or_without_an_end_is_not_taken_for_the_seed(tmp_path: Path) -> None:
    source = RunFolder(tmp_path / "run")
    train_job(compose(TINY), source, quiet=True)

    def found(*more: str, seed: int = 0) -> bool:
        return find_source_run(Context(compose([*TINY, *more]), source, tmp_path, train_runs), seed) is not None

    assert found()
    assert not found("optim.lr=0.5")
    assert not found(seed=1)
    summary = source.read_summary()
    source.write_json("summary.json", summary | {"status": "interrupted"})
    assert not found()


def test_diverged_seeds_are_counted_and_left_out(tmp_path: Path) -> None:
    """An inner rate of 1e20 leaves no finite loss."""
    rows, summary = run_in_context(make_context(tmp_path, "algo.inner_lr=1e20"), Seeds(seeds=2))
    assert all(r["diverged"] for r in rows)
    assert (summary["diverged"], summary["message"]) == (2, "every seed diverged")
    analysis, context = Seeds(2), make_context(tmp_path)
    sound = make_context(tmp_path / "sound")
    more, _ = run_in_context(sound, analysis)
    mixed = analysis.summarise(context, [*more, rows[0]])
    assert (mixed["seeds"], mixed["diverged"]) == (3, 1)
    assert mixed["mean"] == pytest.approx(np.mean([r["mean"] for r in more]))
