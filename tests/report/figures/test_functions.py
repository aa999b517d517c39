"""The figure of predicted functions, and the page of a learner of distributions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.report_folders import write_run

from metarun.report.figures.drawing import style
from metarun.report.figures.functions import draw_functions
from metarun.report.read.runs import read_run
from metarun.report.write import write_report
from metarun.storage.run_folder import RunFolder


def functions(tasks: int, latent: bool, oracle: bool) -> dict[str, Any]:
    """Of lines y = k x with deviation 0.5, and of the oracle 0.1 above them."""
    x = np.linspace(-2, 2, 9)
    rows = []
    for k in range(1, tasks + 1):
        row: dict[str, Any] = {
            "mean": (k * x).tolist(),
            "deviation": [0.5] * 9,
            "context": [[0.0, 1.0], [0.0, float(k)]],
        }
        row |= {"targets": [[-1.0], [-float(k)]]}
        row["draws"] = [(k * x + 0.2 * d * latent).tolist() for d in (-1, 1)]
        row |= {"oracle_mean": (k * x + 0.1).tolist(), "oracle_deviation": [0.3] * 9} if oracle else {}
        rows.append(row)
    return {"x": x.tolist(), "tasks": rows}


def drawn(folder: Path, found: dict[str, Any]) -> Any:
    RunFolder(write_run(folder)).write_json("functions.json", found)
    with style():
        drawing = draw_functions(read_run(folder))
    assert drawing is not None
    return drawing


def lines(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_functions_are_drawn_with_band_draws_points_and_posterior(tmp_path: Path) -> None:
    drawing = drawn(tmp_path / "run", functions(3, latent=True, oracle=True))
    axes = drawing.figure.axes
    assert [ax.get_title(loc="left") for ax in axes] == [f"Test task {i}" for i in range(3)]
    assert {(ax.get_xlabel(), ax.get_ylabel()) for ax in axes} == {("x", "y")}
    named = lines(axes[1])
    expected = ["draws of the latent variables", "predicted mean", "exact posterior, 95 %", "targets", "context"]
    assert list(named) == expected
    np.testing.assert_allclose(named["predicted mean"].get_ydata(), 2 * np.linspace(-2, 2, 9))
    np.testing.assert_allclose(named["context"].get_xydata(), [[0, 0], [1, 2]])
    np.testing.assert_allclose(named["targets"].get_xydata(), [[-1, -2]])
    band = axes[1].collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([band[band[:, 0] == 0][:, 1].min(), band[band[:, 0] == 0][:, 1].max()], [-0.98, 0.98])
    shown = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert shown == ["95 % band", *expected]
    low, high = axes[1].get_ylim()
    assert (low, high) == pytest.approx((-2 - 2.4, 2 + 2.4))  # what the points need, and 60 % of their range around


def test_what_is_not_there_is_not_in_the_legend(tmp_path: Path) -> None:
    drawing = drawn(tmp_path / "run", functions(1, latent=False, oracle=False))
    shown = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert shown == ["95 % band", "predicted mean", "targets", "context"]
    assert "of 1 test tasks; mean deviations 0.5" in drawing.alt


def test_the_page_of_a_learner_of_distributions_has_the_figure_and_the_table(tmp_path: Path) -> None:
    beside = {"mse": {"mean": 0.25, "ci95": 0.01}, "coverage_90": {"mean": 0.875, "ci95": 0.01}}
    folder = write_run(tmp_path / "run", summary={"beside": beside, "oracle": {"mse": {"mean": 0.125, "ci95": 0.01}}})
    RunFolder(folder).write_json("functions.json", functions(2, latent=True, oracle=True))
    page = write_report([folder]).read_text(encoding="utf-8")
    for words in (
        "Predicted distributions",
        "MSE of the mean",
        "targets inside the 90 % band",
        "87.5",
        "best possible",
    ):
        assert words in page
    assert "could not be made" not in page
