"""Parallel coordinates and heat maps of swept settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.sweep_folders import read_sweep, write_job

from metarun.report.compare.sweep import Axis
from metarun.report.figures.sweep import average_cells, draw_sweep, positions, spread


def test_places_on_an_axis() -> None:
    assert positions(Axis("a", (0.001, 0.01, 1))) == pytest.approx({0.001: 0, 0.01: 1 / 3, 1: 1})
    assert positions(Axis("a", (1, 4, 10))) == pytest.approx({1: 0, 4: 1 / 3, 10: 1})  # no more than a decade
    assert positions(Axis("a", (0, 25, 100))) == pytest.approx({0: 0, 25: 0.25, 100: 1})
    assert positions(Axis("a", ("x", "y", "z"))) == {"x": 0, "y": 0.5, "z": 1}
    heights = spread({"x": 0.0, "y": 1.0}, ["x", "y", "x"])
    assert heights == pytest.approx([0.03, 1.0, -0.03])


def test_cells_of_a_heat_map_are_means_over_all_else(tmp_path: Path) -> None:
    values = {("maml", 1, 1): 1.0, ("maml", 1, 2): 3.0, ("maml", 2, 1): 5.0, ("imaml", 1, 1): 7.0}
    for at, ((algo, rate, steps), val) in enumerate(values.items()):
        write_job(tmp_path, at, f"algo={algo}", f"algo.inner_lr={rate}", f"train.steps={steps}", val=val)
    write_job(tmp_path, 4, "algo=imaml", "algo.inner_lr=2", "train.steps=1", run=False, status="failed", reason="x")
    result = read_sweep(tmp_path)
    means, lost = average_cells(result.benchmarks[0].rows, (0, 1), *result.axes[:2])
    assert [axis.values for axis in result.axes[:2]] == [("maml", "imaml"), (1, 2)]
    np.testing.assert_allclose(means, [[2.0, 7.0], [5.0, np.nan]])
    assert lost.tolist() == [[0, 0], [0, 1]]
    drawings, _ = draw_sweep(result)
    assert [d.name for d in drawings] == ["sweep_sinusoid_10_shot", "sweep_pairs_sinusoid_10_shot"]
    assert len(drawings[1].figure.axes) == 3


def test_what_a_figure_leaves_out_is_said(tmp_path: Path) -> None:
    for at in range(3):
        write_job(tmp_path, at, *(f"train.x{k}={at}" for k in range(8)), val=1.0 + at)
    drawings, texts = draw_sweep(read_sweep(tmp_path))
    assert "Left out of the lines: train.x6, train.x7." in texts
    assert any("No heat map of" in text and "22 more" not in text for text in texts)
    assert len(drawings[1].figure.axes) == 6
