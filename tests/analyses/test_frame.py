"""job=analyze: its table resumes, its folders are for one set of settings each, mistakes are answered in one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from metarun.analyses.analysis import Cell, Context, Row, run_analysis
from metarun.cli.main import compose
from metarun.errors import UserError
from metarun.jobs.analyze import analyze_job
from metarun.jobs.train import train_job
from metarun.report.figures.drawing import Drawing
from metarun.storage.run_folder import RunFolder

TINY = ["train.steps=3", "train.tasks=2", "val.tasks=3", "test.tasks=4", "test.steps=2", "device.compile=false"]
TINY += ["device.threads=1", "report=false"]
SENSITIVITY = ["analysis=sensitivity", "analysis.rates=[1,2]", "analysis.steps=[0,1]", "analysis.tasks=4"]


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
    return Context(compose([]), None, tmp_path / "analysis", train_job)


def silent(line: str) -> None:
    """Where progress goes."""


def trained(folder: Path, *more: str) -> Path:
    train_job(compose([*TINY, *more]), RunFolder(folder), quiet=True)
    return folder


def analyze(run: Path, *more: str, folder: Path | None = None) -> Path:
    """What the command line does, without a process; the folder of the results."""
    config = compose([*TINY, "job=analyze", *more])
    config.run = str(run) if run.name != "none" else None
    return analyze_job(config, RunFolder(folder or run / "unused")).folder


def test_the_results_are_a_csv_a_json_and_a_figure_each_twice(context: Context) -> None:
    results = run_analysis(Squares([]), context, silent)
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
        run_analysis(Squares(first, stop=2), context, silent)
    assert first == [0, 1]
    second: list[int] = []
    assert run_analysis(Squares(second), context, silent)["summary"] == {"sum": 14}
    assert second == [2, 3]
    again: list[int] = []
    assert run_analysis(Squares(again), context, silent)["summary"] == {"sum": 14}
    assert again == []


@pytest.mark.parametrize("cut", [1, 15, 30])
def test_a_line_that_was_cut_off_is_measured_again(context: Context, cut: int) -> None:
    """What is written behind it must not join it either: the next sitting has to find every cell."""
    run_analysis(Squares([]), context, silent)
    path = context.folder / "results.jsonl"
    path.write_text(path.read_text()[:-cut])
    done: list[int] = []
    assert run_analysis(Squares(done), context, silent)["summary"] == {"sum": 14}
    assert done in ([3], [])  # without its line break alone the last line is whole
    done.clear()
    assert run_analysis(Squares(done), context, silent)["summary"] == {"sum": 14}
    assert done == []


def test_results_of_cells_that_are_not_asked_for_are_left_alone(context: Context) -> None:
    context.folder.mkdir()
    (context.folder / "results.jsonl").write_text('{"x": 17, "kind": null, "square": 1}\n[1]\nnull\n')
    assert run_analysis(Squares([]), context, silent)["summary"] == {"sum": 14}


def test_other_settings_get_a_folder_of_their_own_and_the_same_ones_the_old(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    assert analyze(run, *SENSITIVITY) == run / "analyses" / "sensitivity"
    assert analyze(run, *SENSITIVITY, "analysis.tasks=5") == run / "analyses" / "sensitivity-2"
    assert analyze(run, *SENSITIVITY) == run / "analyses" / "sensitivity"
    assert analyze(run, *SENSITIVITY, "data.shots=5") == run / "analyses" / "sensitivity-3"


def test_a_folder_with_results_for_other_settings_is_refused_without_a_run(tmp_path: Path) -> None:
    """Without this, rows of the old settings would be taken for rows of the new ones."""
    small = ["analysis=data_amount", "analysis.amounts=[2]", "analysis.tasks=3"]
    folder, none = tmp_path / "job", tmp_path / "none"
    assert analyze(none, *small, folder=folder) == folder
    assert analyze(none, *small, folder=folder) == folder
    with pytest.raises(UserError, match=r"hydra.run.dir=.*: holds results for other settings"):
        analyze(none, *small, "optim.lr=0.1", folder=folder)


def test_mistakes_are_answered_by_one_line(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    cases = {
        r"analysis=None: job=analyze needs one; choices: .*sensitivity": (run, ()),
        r"is no run folder of metarun": (tmp_path / "nothing", SENSITIVITY),
        r"analysis.tassks: no such setting, did you mean tasks": (run, [*SENSITIVITY, "+analysis.tassks=3"]),
        r"analysis.rates=\[-1.0\]: must be above 0": (run, [*SENSITIVITY, "analysis.rates=[-1]"]),
    }
    for message, (folder, more) in cases.items():
        with pytest.raises(UserError, match=message) as error:
            analyze(folder, *more)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "nothing").exists()


def test_an_unknown_analysis_is_refused_by_name() -> None:
    from metarun.cli.usage_errors import one_line

    with pytest.raises(Exception, match="sensitivvity") as error:
        compose(["analysis=sensitivvity"])
    message = one_line(error.value)
    assert message is not None
    assert "\n" not in message
    assert "sensitivity" in message


def test_changed_settings_leave_the_original_alone_and_unknown_ones_are_refused(context: Context) -> None:
    changed = context.change_settings({"algo.inner_lr": 0.5, "train.pool": 7, "data.shots": 3})
    assert (changed.algo["inner_lr"], changed.train.pool, changed.data["shots"]) == (0.5, 7, 3)
    assert (context.config.algo["inner_lr"], context.config.train.pool) == (0.01, None)
    for key in ("algo.proxx", "train.nothing", "nothing.at.all"):
        with pytest.raises(UserError, match=f"{key}=1: this run has no such setting"):
            context.change_settings({key: 1})


def test_a_run_that_is_done_is_not_trained_again_and_keeps_what_it_cost(tmp_path: Path) -> None:
    context = Context(compose([*TINY]), None, tmp_path, train_job)
    first = context.train("one", {"seed": 3})
    stamp = (first.folder.last).stat().st_mtime_ns
    again = context.train("one", {"seed": 3})
    assert again.folder.last.stat().st_mtime_ns == stamp
    assert again.cpu_seconds == first.cpu_seconds
    assert first.cpu_seconds is not None
    assert first.cpu_seconds > 0


def test_a_run_that_was_stopped_inside_an_analysis_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    context = Context(compose([*TINY, "train.steps=6", "train.checkpoint_every=2"]), None, tmp_path, train_job)
    whole = context.train("whole", {})
    stopped = context.change_settings({"train.max_minutes": 1e-9})
    train_job(stopped, RunFolder(tmp_path / "runs" / "cut"), quiet=True)
    summary = json.loads((tmp_path / "runs/cut/summary.json").read_text())
    (tmp_path / "runs/cut/summary.json").write_text(json.dumps(summary | {"status": "running"}))  # as after a kill
    continued = context.train("cut", {})
    assert continued.summary["params_sha256"] == whole.summary["params_sha256"]
    assert continued.summary["steps_done"] == 6
    assert continued.cpu_seconds is None
