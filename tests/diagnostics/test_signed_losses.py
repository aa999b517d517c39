"""Losses below 0, as of likelihoods: alarm rules add logarithms where others multiply; functions in the report."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.report_folders import write_run

from metarun.config.schema import AlarmConfig, DiagnosticsConfig
from metarun.diagnostics.alarms import Alarms, Baseline
from metarun.diagnostics.chance import Chance
from metarun.report import write_report
from metarun.report.figures.drawing import style
from metarun.report.figures.functions import draw_functions
from metarun.report.read.runs import read_run
from metarun.storage.run_folder import RunFolder

LIKELIHOOD = Baseline(Chance(-1.4, 1.4), "log_likelihood", higher_is_better=True, best=0.0, signed=True)


def raised(*records: tuple[str, dict[str, Any]], run: Baseline = LIKELIHOOD) -> set[str]:
    alarms = Alarms(DiagnosticsConfig(alarms=AlarmConfig()), run)
    for step, (kind, values) in enumerate(records, 1):
        alarms.observe(kind, step, values)
    return set(alarms.raised)


def losses(*values: float) -> list[tuple[str, dict[str, Any]]]:
    return [("train", {"loss": value}) for value in values]


def val(mean: float, ci95: float = 0.001) -> tuple[str, dict[str, Any]]:
    return "val", {"mean": mean, "ci95": ci95, "improved": False}


def test_a_healthy_run_below_zero_raises_none() -> None:
    falling = losses(*(1.4 - 0.1 * k for k in range(25)))
    assert raised(*falling, *(val(-1.3 + 0.2 * k) for k in range(8))) == set()
    assert raised(*losses(*(-1.0, -0.7) * 20), *(val(1.0),) * 6) == set()


@pytest.mark.parametrize("first", [-3.0, 1.4])
def test_a_negative_loglikelihood_has_diverged_log_3_above_chance(first: float) -> None:
    """However low it began: 1.4 + log 3 = 2.4986."""
    assert "diverged" not in raised(*losses(first, *(2.49,) * 5))
    assert "diverged" in raised(*losses(first, *(2.51,) * 5))
    assert "diverged" in raised(*losses(2.0, *(3.2,) * 5))  # 2 + log 3 = 3.0986
    assert "diverged" not in raised(*losses(2.0, *(3.0,) * 5))


def test_a_negative_loglikelihood_spikes_by_differences() -> None:
    """Median -0.9, MAD 0.1, so that spike=8 allows up to -0.1; a calm window allows log 2."""
    window = losses(*(-1.0, -0.8) * 10)
    assert raised(*window, *losses(-0.11)) == set()
    assert raised(*window, *losses(-0.09)) == {"loss_spike"}
    calm = losses(*(-1.0,) * 20)
    assert raised(*calm, *losses(-1 + math.log(2) - 0.01)) == set()
    assert raised(*calm, *losses(-1 + math.log(2) + 0.01)) == {"loss_spike"}


def test_a_likelihood_is_stuck_where_a_constant_gaussian_would_do_as_well() -> None:
    """1 % of chance is log(1 / 0.99) = 0.01005 nats."""
    assert raised(*(val(-1.4),) * 5) == {"stuck_at_chance"}
    assert raised(*(val(-1.391),) * 5) == {"stuck_at_chance"}
    assert raised(*(val(-1.389),) * 5) == set()
    assert raised(*(val(-1.389, 0.05),) * 5) == {"stuck_at_chance"}
    assert raised(*(val(0.5),) * 5) == set()
    assert raised(*(val(-1.45 + 0.0026 * k) for k in range(5))) == set(), "on its way"


def test_a_chance_of_zero_is_a_level_like_any_other() -> None:
    at_zero = LIKELIHOOD._replace(chance=Chance(0.0, 0.0))
    assert raised(*(val(-0.2),) * 5, run=at_zero) == {"stuck_at_chance"}
    assert raised(*(val(0.1),) * 5, run=at_zero) == set()
    perfect = Baseline(Chance(0.0, 0.0), "mse", higher_is_better=False)  # nothing is better than an error of 0
    assert raised(*(val(0.0),) * 5, run=perfect) == set()


def test_training_tasks_are_memorised_log_10_below_chance_where_new_ones_are_not_half_way() -> None:
    """Solved: a loss of 1.4 - log 10 = -0.903; unsolved: an error above 1.4 + log 0.3 = 0.196."""
    assert raised(*losses(*(-0.91,) * 5), val(-0.21)) == {"memorisation"}
    assert raised(*losses(*(-0.89,) * 5), val(-0.21)) == set()
    assert raised(*losses(*(-0.91,) * 5), val(-0.19)) == set()
    assert raised(*losses(*(-0.91,) * 5), val(-0.21, 0.03)) == set()


# ---------------------------------------------------------------- the report's functions


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
    expected = ["draws of what is latent", "predicted mean", "exact posterior, 95 %", "targets", "context"]
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
