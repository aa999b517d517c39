"""job=analyze: one folder for one set of settings; mistakes are answered in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarun.cli.compose import compose
from metarun.errors import UserError
from metarun.jobs.analyze import analyze_job
from metarun.jobs.train import train_job
from metarun.storage.run_folder import RunFolder

TINY = ["train.steps=3", "train.tasks=2", "val.tasks=3", "test.tasks=4", "test.steps=2", "device.compile=false"]
TINY += ["device.threads=1", "report=false"]
SENSITIVITY = ["analysis=sensitivity", "analysis.rates=[1,2]", "analysis.steps=[0,1]", "analysis.tasks=4"]


def train(folder: Path, *more: str) -> Path:
    train_job(compose([*TINY, *more]), RunFolder(folder), quiet=True)
    return folder


def analyze(run: Path, *more: str, folder: Path | None = None) -> Path:
    """Run the job as the command line does, without a process. Return the folder of the results."""
    config = compose([*TINY, "job=analyze", *more])
    config.run = str(run) if run.name != "none" else None
    return analyze_job(config, RunFolder(folder or run / "unused")).folder


def test_other_settings_get_a_folder_of_their_own_and_the_same_ones_the_old(tmp_path: Path) -> None:
    run = train(tmp_path / "run")
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
    run = train(tmp_path / "run")
    cases = {
        r"analysis=None: job=analyze needs one; choices: .*sensitivity": (run, ()),
        r"is not a run folder": (tmp_path / "nothing", SENSITIVITY),
        r"analysis.tassks: no such setting, did you mean tasks": (run, [*SENSITIVITY, "+analysis.tassks=3"]),
        r"analysis.rates=\[-1.0\]: must be above 0": (run, [*SENSITIVITY, "analysis.rates=[-1]"]),
    }
    for message, (folder, more) in cases.items():
        with pytest.raises(UserError, match=message) as error:
            analyze(folder, *more)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "nothing").exists()


def test_a_refused_analysis_claims_no_folder(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "algo=reptile")
    shift = ["analysis=task_shift", "+analysis.regression.wrong.amplitud=3"]
    with pytest.raises(UserError, match="no such shift of these data"):
        analyze(run, *shift)
    assert not (run / "analyses").exists()
    analyze(run, *SENSITIVITY)
    with pytest.raises(UserError, match="no such shift of these data"):
        analyze(run, *shift)
    assert [path.name for path in (run / "analyses").iterdir()] == ["sensitivity"]


def test_an_unknown_analysis_is_refused_by_name() -> None:
    from metarun.cli.usage_errors import describe_usage_error

    with pytest.raises(Exception, match="sensitivvity") as error:
        compose(["analysis=sensitivvity"])
    message = describe_usage_error(error.value)
    assert message is not None
    assert "\n" not in message
    assert "sensitivity" in message
