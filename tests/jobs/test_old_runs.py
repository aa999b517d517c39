"""Run folders of earlier versions (tests/fixtures) can be evaluated, resumed, analysed, exported and reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.colours import class_folders

import metarun
from metarun.cli.report import main as report
from metarun.training import checkpoint

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
RUNS = FIXTURES / "runs_0_1"
FORMAT_1 = "../runs_format_1/maml_sinusoid"
TRAINED = ("maml_sinusoid", "metasgd_sinusoid", "imaml_l1_rewind", "np_gp", "pearl_point_robot", "protonet_folder")
TRAINED += ("ema_sinusoid",)
OF_IMAGES = ("protonet_folder", "maml_folder")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "pictures", [f"class{i}" for i in range(12)], 5)


def copy_of(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(RUNS / name, tmp_path / Path(name).name))


def do(folder: Path, *overrides: str) -> dict[str, Any]:
    """The job of these overrides, as the command line would compose it; its summary."""
    typed = list(overrides)
    return metarun.run(metarun.compose(typed), folder).summary


@pytest.mark.parametrize("name", [*TRAINED, FORMAT_1, "maml_folder", "sweep/seed0-7030ad82"])
def test_an_old_run_is_evaluated_to_its_own_result(name: str, tmp_path: Path, pictures: Path) -> None:
    stored = json.loads((RUNS / name / "summary.json").read_text())
    more = [f"data.root={pictures}", "data=folder"] if name in OF_IMAGES else []
    summary = do(tmp_path / "again", "job=evaluate", f"run={RUNS / name}", "report=false", *more)
    assert summary["params_sha256"] == stored["params_sha256"]
    assert summary["episodes_sha256"] == stored["episodes_sha256"]
    assert summary["mean"] == pytest.approx(stored["mean"], rel=1e-4)
    assert [row["step"] for row in summary["curve"]] == [row["step"] for row in stored["curve"]]


@pytest.mark.parametrize(
    "name", ["maml_sinusoid", "metasgd_sinusoid", "imaml_l1_rewind", "pearl_point_robot", "ema_sinusoid", FORMAT_1]
)
def test_an_old_run_is_resumed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its record has the versions and processors that it was computed with; a change of these is printed."""
    folder = copy_of(name, tmp_path)
    stored = json.loads((folder / "summary.json").read_text())
    stored["versions"]["torch"] = "2.12.1"
    if "history" in stored:
        stored["history"][0]["torch"] = "2.12.1"
    (folder / "summary.json").write_text(json.dumps(stored))
    summary = do(folder, f"resume={folder}", "train.steps=9", "report=false")
    assert summary["status"] == "completed"
    assert summary["steps_done"] == 9
    assert [entry["from_step"] for entry in summary["history"]] == [0, 6]
    assert summary["history"][0]["torch"] == "2.12.1"
    assert {**summary["history"][1], **summary["versions"], "from_step": 6} == summary["history"][1]
    assert f"continues with torch {summary['versions']['torch']} (was 2.12.1)" in capsys.readouterr().err


def test_every_format_of_checkpoints_that_is_read_has_a_run() -> None:
    """Who raises FORMAT adds a run folder of the format before."""
    found = {torch.load(path, weights_only=True)["format"] for path in FIXTURES.rglob("*.pt")}
    assert found == {*checkpoint.READABLE}


def test_an_old_analysis_is_there_and_a_new_one_can_be_made(tmp_path: Path) -> None:
    folder = copy_of("maml_sinusoid", tmp_path)
    old = (folder / "analyses/support_resampling/results.csv").read_bytes()
    more = ["analysis=support_resampling", "analysis.tasks=2", "report=false"]
    do(tmp_path / "job", "job=analyze", f"run={folder}", *more)
    found = sorted(folder.glob("analyses/*/results.csv"))
    assert old in [path.read_bytes() for path in found]


@pytest.mark.parametrize("name", ["maml_sinusoid", "protonet_folder", FORMAT_1])
def test_an_old_run_is_exported(name: str, tmp_path: Path, pictures: Path) -> None:
    more = [f"data.root={pictures}", "data=folder"] if name in OF_IMAGES else []
    settings = ["export.tasks=2", "export.calls=1", "report=false"]
    do(tmp_path / "exported", "job=export", f"run={RUNS / name}", *settings, *more)
    assert (tmp_path / "exported/model.safetensors").exists()


@pytest.mark.parametrize("format", ["html", "md"])
def test_old_runs_are_reported(format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(copy_of(path.name, tmp_path)) for path in sorted(RUNS.iterdir())]
    first = shutil.copytree(RUNS / FORMAT_1, tmp_path / "format_1")
    folders.append(str(first))
    report([*folders, "--output", str(tmp_path / f"page.{format}"), "--format", format])
    page = (tmp_path / f"page.{format}").read_text()
    for name in ("metasgd", "pearl", "imaml", "protonet"):
        assert name in page
