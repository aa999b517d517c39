"""Workers of submitit that Slurm stops, with Slurm's commands replaced; tests/faults/test_slurm.py has a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarun.jobs.sweep import child, slurm
from metarun.jobs.sweep.job import Job, run_job
from metarun.jobs.sweep.sitting import Sitting
from metarun.storage.status import WORST
from metarun.storage.sweep_records import JobRecord, SweepRecord, read_job, write_job, write_sweep


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file to which Slurm's commands append how they were called; `squeue` prints the file `state`."""
    log, tools = tmp_path / "calls", tmp_path / "bin"
    tools.mkdir()
    for name, prints in (("squeue", f"cat {tmp_path / 'state'}"), ("scontrol", ":")):
        (tools / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n{prints}\n')
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    return log


@pytest.mark.parametrize(("state", "queued_again"), [("RUNNING", True), ("COMPLETING", False), ("PENDING", False)])
def test_only_a_job_that_slurm_does_not_end_itself_is_queued_again(
    state: str, queued_again: bool, commands: Path, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text(f"{state}\n")
    with pytest.raises(SystemExit) as caught:
        slurm.leave_worker()
    assert caught.value.code == 143
    assert ("scontrol requeue 17\n" in commands.read_text()) == queued_again


def test_a_job_of_an_array_has_a_number_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("JOB_ID", "17"), ("ARRAY_JOB_ID", "17"), ("ARRAY_TASK_ID", "3")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert slurm.job_number() == "17_3"


@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize("code", [143, -15], ids=["with a checkpoint", "as it began"])
def test_a_worker_whose_run_was_stopped_returns_no_result_and_its_job_waits(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_text("PENDING\n")
    job = stopped_job(tmp_path, monkeypatch, child.Ended(code, ""))
    with pytest.raises(SystemExit):
        run_job(job)
    assert read_job(job.folder).status == "waiting"
    monkeypatch.delenv("SUBMITIT_EXECUTOR")
    assert run_job(job) == WORST
    assert read_job(job.folder).status == "interrupted"


def test_a_job_whose_time_is_over_is_interrupted_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What submitit raises in the worker unless `hydra.launcher.max_num_timeout` allows another start."""

    class UncompletedJobError(RuntimeError): ...

    job = stopped_job(tmp_path, monkeypatch, UncompletedJobError("Job not requeued because: timed-out too many times."))
    assert run_job(job) == WORST
    record = read_job(job.folder)
    assert (record.status, record.reason) == ("interrupted", slurm.OUT_OF_TIME)
    with pytest.raises(ValueError, match="mine"):
        run_job(stopped_job(tmp_path, monkeypatch, ValueError("mine")))


def stopped_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: child.Ended | Exception) -> Job:
    def run_child(arguments: list[str], folder: Path, variables: object, keep: object = ()) -> child.Ended:
        if isinstance(ending, Exception):
            raise ending
        (folder / "summary.json").write_text('{"status": "interrupted"}' if ending.code > 0 else "{}")
        return ending

    monkeypatch.setattr(child, "run_child", run_child)
    write_sweep(tmp_path, SweepRecord(visit="v"))
    return Job(tmp_path / "job", tmp_path, "k", 0, ("seed=0",), (), ())


def test_a_lost_job_is_interrupted_and_one_that_ended_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sitting = Sitting(tmp_path, SweepRecord(total=3))
    visit = {sitting.record.visit: False}
    for number, status in enumerate(("running", "completed")):
        (tmp_path / str(number)).mkdir()
        write_job(tmp_path / str(number), JobRecord(number=number, status=status, objective=0.5, visits=visit))
    for number in range(3):  # the last one never began
        sitting.lose(number, "job 17 ended without a result (state FAILED)")
    assert [read_job(tmp_path / str(n)).status for n in (0, 1)] == ["interrupted", "completed"]
    sitting.end()
    assert sitting.exit_code == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "job 3 of the sweep: job 17 ended without a result (state FAILED)"
    assert printed[-1] == "1 of 3 jobs succeeded"
