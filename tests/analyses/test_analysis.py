"""The table of an analysis resumes; its context changes settings and trains; settings out of range are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.analyses import POINTS, TINY, ignore, refusal
from matplotlib.figure import Figure

import metarun
from metarun.analyses.analysis import Cell, Context, Row, describe_progress, mask_diverged, run_analysis
from metarun.cli.compose import compose
from metarun.config.catalogue import conf_folder
from metarun.config.components import build
from metarun.errors import UserError
from metarun.jobs.train import train_job
from metarun.jobs.train_together import train_runs
from metarun.report.figures.drawing import Drawing
from metarun.storage.run_folder import RunFolder
from metarun.storage.text import NOTHING


@dataclass(frozen=True)
class Squares:
    """Measures x -> x^2, noting each measurement in `done`; raises at `stop`, as Ctrl-C does."""

    done: list[int]
    stop: int | None = None

    def cells(self, context: Context) -> Sequence[Cell]:
        return [{"x": x, "kind": None} for x in range(4)]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        if cell["x"] == self.stop:
            raise KeyboardInterrupt
        self.done.append(cell["x"])
        return {"square": cell["x"] ** 2, "list": [1.0], "odd": float("nan") if cell["x"] == 3 else 0.5}

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        return {"sum": sum(r["square"] for r in rows)}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        return [Drawing(name, "squares", Figure()) for name in ("first", "second")]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(compose([]), None, tmp_path / "analysis", train_runs)


def test_the_results_are_a_csv_a_json_and_a_figure_each_twice(context: Context) -> None:
    results = run_analysis(Squares([]), context, ignore)
    names = {p.name for p in context.folder.iterdir()}
    drawn = {f"{stem}.{ending}" for stem in ("figure", "second") for ending in ("png", "svg")}
    assert names == {"results.jsonl", "results.json", "results.csv", *drawn}
    assert results["summary"] == {"sum": 14}
    stored = json.loads((context.folder / "results.json").read_text())
    assert stored["rows"][3] == {"x": 3, "kind": None, "square": 9, "list": [1.0], "odd": None}
    assert (context.folder / "results.csv").read_text().splitlines()[:2] == ["x,kind,square,odd", "0,,0,0.5"]


def test_an_interrupted_analysis_measures_only_what_is_missing(context: Context) -> None:
    first: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run_analysis(Squares(first, stop=2), context, ignore)
    assert first == [0, 1]
    second: list[int] = []
    assert run_analysis(Squares(second), context, ignore)["summary"] == {"sum": 14}
    assert second == [2, 3]
    again: list[int] = []
    assert run_analysis(Squares(again), context, ignore)["summary"] == {"sum": 14}
    assert again == []


@pytest.mark.parametrize("cut", [1, 15, 30])
def test_a_line_that_was_cut_off_is_measured_again(context: Context, cut: int) -> None:
    """What is written behind it must not join it either: the next sitting has to find every cell."""
    run_analysis(Squares([]), context, ignore)
    path = context.folder / "results.jsonl"
    path.write_text(path.read_text()[:-cut])
    done: list[int] = []
    assert run_analysis(Squares(done), context, ignore)["summary"] == {"sum": 14}
    assert done in ([3], [])  # without its line break alone the last line is whole
    done.clear()
    assert run_analysis(Squares(done), context, ignore)["summary"] == {"sum": 14}
    assert done == []


def test_a_line_with_bytes_that_are_no_text_is_measured_again(context: Context) -> None:
    run_analysis(Squares([]), context, ignore)
    path = context.folder / "results.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"x": 1', b'"x\xff: 1'))
    done: list[int] = []
    assert run_analysis(Squares(done), context, ignore)["summary"] == {"sum": 14}
    assert done == [1]


def test_results_of_cells_that_are_not_asked_for_are_left_alone(context: Context) -> None:
    context.folder.mkdir()
    (context.folder / "results.jsonl").write_text('{"x": 17, "kind": null, "square": 1}\n[1]\nnull\n')
    assert run_analysis(Squares([]), context, ignore)["summary"] == {"sum": 14}


def test_changed_settings_leave_the_original_alone_and_unknown_ones_are_refused(context: Context) -> None:
    changed = context.change_settings({"algo.inner_lr": 0.5, "train.pool": 7, "data.shots": 3})
    assert (changed.algo["inner_lr"], changed.train.pool, changed.data["shots"]) == (0.5, 7, 3)
    assert (context.config.algo["inner_lr"], context.config.train.pool) == (0.01, None)
    for key in ("algo.proxx", "train.nothing", "nothing.at.all"):
        with pytest.raises(UserError, match=f"{key}=1: this run has no such setting"):
            context.change_settings({key: 1})


def test_a_run_that_is_done_is_not_trained_again_and_keeps_what_it_cost(tmp_path: Path) -> None:
    context = Context(compose([*TINY]), None, tmp_path, train_runs)
    first = context.train("one", {"seed": 3})
    stamp = (first.folder.last).stat().st_mtime_ns
    again = context.train("one", {"seed": 3})
    assert again.folder.last.stat().st_mtime_ns == stamp
    assert again.cpu_seconds == first.cpu_seconds
    assert first.cpu_seconds is not None
    assert first.cpu_seconds > 0


def test_a_run_that_was_stopped_inside_an_analysis_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    context = Context(compose([*TINY, "train.steps=6", "train.checkpoint_every=2"]), None, tmp_path, train_runs)
    whole = context.train("whole", {})
    stopped = context.change_settings({"train.max_minutes": 1e-9})
    train_job(stopped, RunFolder(tmp_path / "runs" / "cut"), quiet=True)
    summary = json.loads((tmp_path / "runs/cut/summary.json").read_text())
    (tmp_path / "runs/cut/summary.json").write_text(json.dumps(summary | {"status": "running"}))  # as after a kill
    continued = context.train("cut", {})
    assert continued.summary["params_sha256"] == whole.summary["params_sha256"]
    assert continued.summary["steps_done"] == 6
    assert continued.cpu_seconds is None


@pytest.mark.parametrize(
    ("analysis", "changes", "message"),
    [
        ("task_shift", {"tasks": 1}, "analysis.tasks=1: must be at least 2"),
        ("task_shift", {"regression": {"none": {"shots": 3}}}, "is the name of the tasks without a shift"),
        ("task_shift", {"regression": {"more": 3}}, "analysis.regression"),
        ("sensitivity", {"rates": [-1.0]}, r"analysis.rates=[-1.0]: must be above 0"),
        ("sensitivity", {"strengths": [0.0]}, r"analysis.strengths=[0.0]: must be above 0"),
        ("sensitivity", {"steps": [-1]}, r"analysis.steps=[-1]: must be whole numbers of at least 0"),
        ("sensitivity", {"cg_steps": [0]}, r"analysis.cg_steps=[0]: must be whole numbers of at least 1"),
        ("support_resampling", {"draws": 1}, "analysis.draws=1: must be at least 2"),
        ("support_resampling", {"queries": 0}, "analysis.queries=0: must be at least 1, or null"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(analysis: str, changes: dict[str, Any], message: str) -> None:
    node = yaml.safe_load((conf_folder() / "analysis" / f"{analysis}.yaml").read_text())
    build("analysis", node)
    assert message in refusal(lambda: build("analysis", node | changes))


@pytest.mark.parametrize("analysis", ["task_shift", "support_resampling", "sensitivity", "implicit_cost"])
def test_an_analysis_of_a_run_needs_one(analysis: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this analysis needs a trained run"):
        metarun.run(metarun.compose(["job=analyze", f"analysis={analysis}", *POINTS]), tmp_path)


def test_scores_of_outputs_that_are_not_finite_are_nan() -> None:
    losses, scores = torch.tensor([0.1, torch.inf, torch.nan]), torch.tensor([0.9, 0.2, 0.2])
    assert mask_diverged(losses, scores).isnan().tolist() == [False, True, True]


@pytest.mark.parametrize(
    "name", ["stability_map", "replace_one", "data_amount", "seeds", "inner_loops", "implicit_cost"]
)
def test_shipped_settings_build(name: str) -> None:
    config = compose([f"analysis={name}"])
    assert build("analysis", config.analysis)
    assert json.dumps(config.analysis)


def test_progress_names_numbers_without_intervals_and_checksums() -> None:
    row = {"seed": 0, "diverged": False, "mean": 3.6123, "ci95": 3.7, "half_gap": 1.0, "episodes_sha256": "3ccd4"}
    assert describe_progress(1, 2, row, [2.0]) == "1/2  seed 0  mean 3.61"
    row |= {"diverged": True, "mean": None, "scores": [1.0]}
    assert describe_progress(2, 3, row, [2.0, 4.0]) == f"2/3  2 s left  seed 0  diverged  mean {NOTHING}"
