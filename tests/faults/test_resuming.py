"""Where a run begins: at its checkpoint, anew, or not at all; and who may write there."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from helpers.runs import ENDLESS, here, started, wait_for_lines

import metarun
from metarun.storage.locks import find_owner, lock_run_folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".run.lock"}


def test_a_run_that_has_ended_is_left_as_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    result = here(run, resume=True)
    assert (result.status, result.summary["steps_done"]) == ("completed", 20)
    assert contents(run) == before
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"nothing to do in {run} (completed: 20 steps); raise train.steps to continue"


def test_a_run_that_has_ended_goes_on_with_more_steps(run: Path, tmp_path: Path) -> None:
    here(run, "train.steps=30", resume=True)
    here(tmp_path / "whole", "train.steps=30")
    assert (run / "test.json").read_bytes() == (tmp_path / "whole/test.json").read_bytes()


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(run: Path, ended: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "summary.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(True)
    (run / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:10])
    here(run, resume=True)
    assert (run / "metrics.jsonl").read_bytes() == (ended / "metrics.jsonl").read_bytes()


def test_a_run_whose_checkpoints_were_lost_is_not_begun_anew_unasked(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "summary.json").unlink()
    before = contents(run)
    with pytest.raises(metarun.UserError, match=r"last\.pt: is missing, though 20 steps were done"):
        here(run, resume=True)
    assert contents(run) == before


def test_a_checkpoint_caught_between_its_two_renames_is_taken_from_its_predecessor(run: Path, ended: Path) -> None:
    (run / "checkpoints/last.pt").unlink()
    (run / "summary.json").unlink()
    here(run, resume=True)
    assert (run / "metrics.jsonl").read_bytes() == (ended / "metrics.jsonl").read_bytes()


def test_a_folder_with_a_run_is_not_for_another(run: Path) -> None:
    before = contents(run)
    with pytest.raises(metarun.UserError, match="holds a run already; resume="):
        here(run, "seed=1")
    assert contents(run) == before


def reused(run: Path, *changes: str) -> object:
    typed = [*changes, f"resume={run}"]
    return metarun.compose(typed)


def test_changed_settings_are_all_named_with_what_the_run_has(run: Path) -> None:
    with pytest.raises(metarun.UserError) as caught:
        reused(run, "seed=4", "algo.inner_lr=0.5", "train.steps=70")
    assert str(caught.value).startswith(
        f"seed=4: cannot change in resume={run}, which has 0, nor algo.inner_lr=0.5 (the run has 0.01); choices: "
    )
    assert "resume_allow=[seed,algo.inner_lr]" in str(caught.value)


def test_resume_allow_lets_a_setting_through_and_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = reused(run, "resume_allow=[train.log_every]", "train.log_every=1")
    assert config.train.log_every == 1
    assert capsys.readouterr().err.endswith("from here on another run than it was: train.log_every=1 (the run has 2)\n")
    with pytest.raises(metarun.UserError, match="seed=4: cannot change"):
        reused(run, "resume_allow=[train.log_every]", "train.log_every=1", "seed=4")


@pytest.mark.slow
def test_a_second_writer_is_refused_and_a_killed_one_leaves_the_folder_free(tmp_path: Path) -> None:
    process = started(ENDLESS, f"hydra.run.dir={tmp_path}/run", cwd=tmp_path)
    wait_for_lines(tmp_path / "run/metrics.jsonl", 10, process)
    settings = (tmp_path / "run/.hydra/config.yaml").read_bytes()
    second = started("seed=1", f"hydra.run.dir={tmp_path}/run", cwd=tmp_path)
    output, errors = second.communicate(timeout=120)
    assert (second.returncode, output, errors.count("\n")) == (2, "", 1)
    assert f"run: another process writes there (process {process.pid} on " in errors
    assert (tmp_path / "run/.hydra/config.yaml").read_bytes() == settings
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert find_owner(tmp_path / "run") is None
    with lock_run_folder(tmp_path / "run"):
        assert str(find_owner(tmp_path / "run")).startswith("process ")
