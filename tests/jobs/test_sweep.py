"""The parts of a sweep: which run a job is, what is skipped, resumed, counted and reported."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import metarun as package
from metarun.jobs.sweep import child, identity, overview, sitting
from metarun.jobs.sweep.job import Job, run_job
from metarun.jobs.sweep.warm import WarmProcess, can_fork
from metarun.storage.status import WORST
from metarun.storage.sweep_records import JobRecord, SweepRecord, read_job, write_job, write_sweep

SETTINGS = {"algo": {"inner_lr": 0.1, "inner_steps": 1}, "seed": 0, "train": {"steps": 5}}


def test_the_key_of_a_run_follows_its_settings_and_no_others() -> None:
    key = identity.run_key(SETTINGS)
    harmless = {"resume": "x", "report": False, "logger": {"name": "wandb"}, "device": {"threads": 1}}
    assert identity.run_key({**SETTINGS, **harmless}) == key
    assert identity.run_key({**SETTINGS, "seed": 1}) != key
    assert identity.run_key({**SETTINGS, "algo": {"inner_lr": 0.1, "inner_steps": 2}}) != key


def test_the_key_follows_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    key = identity.run_key(SETTINGS)
    monkeypatch.setattr(identity, "code_version", lambda: "another")
    assert identity.run_key(SETTINGS) != key


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["algo=maml", "algo.inner_lr=0.01", "seed=1"], "maml-inner_lr0.01-seed1-abcdef12"),
        (["hydra/launcher=joblib", "+model.x='a b/c'"], "joblib-xa_b_c-abcdef12"),
        (["algo.inner_lr=0.012345678"], "inner_lr0.01235-abcdef12"),
        (["reg=[l1,l2]"], "l1_l2-abcdef12"),
        ([], "abcdef12"),
    ],
)
def test_a_folder_is_named_by_its_overrides(overrides: list[str], name: str) -> None:
    assert identity.folder_name([*overrides, "train.steps=5"], ["train.steps"], "abcdef1234") == name


def test_the_name_of_a_folder_has_a_limit() -> None:
    assert len(identity.folder_name([f"data.root={'x' * 500}"], [], "abcdef1234")) < 120


def test_edited_new_and_lost_settings_files_are_named(tmp_path: Path) -> None:
    for name in ("same", "edited", "lost"):
        (tmp_path / f"{name}.yaml").write_text(name)
    before = identity.yaml_digests([tmp_path])
    (tmp_path / "edited.yaml").write_text("other")
    (tmp_path / "new.yaml").write_text("new")
    (tmp_path / "lost.yaml").unlink()
    changed = identity.changed_files(before, identity.yaml_digests([tmp_path]))
    assert [Path(p).stem for p in changed] == ["edited", "lost", "new"]


def test_a_command_is_the_one_that_a_user_would_type(tmp_path: Path) -> None:
    folder = tmp_path / "it's a=b"
    fresh = child.build_command(["algo=maml"], ["--config-dir", "mine"], folder, resumes=False)
    assert fresh[1:6] == ["-m", "metarun", "--config-dir", "mine", "algo=maml"]
    assert child.build_command(["algo=maml"], [], folder, resumes=True)[3:] == [f"resume={child.quote(folder)}"]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("print('x'); raise SystemExit('metarun: algo=x: no such option')", "algo=x: no such option"),
        ("raise ValueError('what')", "ValueError: what"),
        ("import os; os.kill(os.getpid(), 9)", "its process was ended by SIGKILL (out of memory?)"),
        ("import os; os._exit(7)", "its process ended with code 7"),
    ],
)
def test_the_reason_of_a_failed_process_is_one_line(tmp_path: Path, code: str, why: str) -> None:
    assert child.explain(child.run_child(python(code), tmp_path, dict(os.environ))) == why


def test_a_child_is_given_its_share_of_the_cores_and_the_name_of_its_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    variables = child.build_environment(3, "mine")
    assert variables["OMP_NUM_THREADS"] == variables["MKL_NUM_THREADS"] == "3"
    assert variables["WANDB_RUN_GROUP"] == "mine"
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert "HYDRA_FULL_ERROR" not in child.build_environment(3, "mine")
    monkeypatch.setenv("METARUN_TRACEBACK", "1")
    assert child.build_environment(3, "mine")["HYDRA_FULL_ERROR"] == "1"
    monkeypatch.setenv("WANDB_RUN_GROUP", "theirs")
    assert child.build_environment(3, "mine")["WANDB_RUN_GROUP"] == "theirs"


def orphan(marks: Path) -> None:
    """A parent that dies while its child waits for a signal."""
    code = (
        "import signal, sys, time\nfrom metarun.jobs.sweep.child import end_with_parent\n"
        f"def stop(*_):\n    open({str(marks / 'stopped')!r}, 'w').close()\n    sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop)\nend_with_parent()\n"
        f"open({str(marks / 'ready')!r}, 'w').close()\ntime.sleep(30)"
    )
    child.run_child(python(code), marks, child.build_environment(1, "x"))


def test_a_job_whose_sweep_was_killed_stops(tmp_path: Path) -> None:
    parent = multiprocessing.Process(target=orphan, args=(tmp_path,))
    parent.start()
    wait_for(tmp_path / "ready")
    os.kill(parent.pid or 0, signal.SIGKILL)
    wait_for(tmp_path / "stopped")


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--version"], 0, f"metarun {package.__version__}"),
        (["algo=x"], 2, "metarun: algo=x: no such option"),
    ],
)
def test_a_warm_job_ends_as_the_command_does(words: list[str], code: int, line: str, tmp_path: Path) -> None:
    assert can_fork() == (sys.platform == "linux")
    before = dict(os.environ)
    ended = child.run_child([*child.METARUN, *words], tmp_path, child.build_environment(1, "x"))
    assert ended.code == code
    assert ended.last_line.startswith(line)
    assert dict(os.environ) == before


def test_a_warm_job_has_its_variables_and_holds_the_files_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module of the user's writes down what it sees; a pipe is closed once no process has it."""
    seen, reader = tmp_path / "seen", os.pipe()
    code = f"def net(outputs):\n    open({str(seen)!r}, 'w').write(os.environ['MINE'])\n    time.sleep(60)"
    (tmp_path / "mine.py").write_text(f"import os, time\n{code}")
    monkeypatch.syspath_prepend(tmp_path)
    words = ["model=module", "model.target=mine.net", "trusted_modules=[mine]", f"hydra.run.dir={tmp_path / 'run'}"]
    variables = {**child.build_environment(1, "x"), "MINE": "here"}
    process = WarmProcess([*words, "report=false"], tmp_path / "output.txt", variables, [reader[1]])
    os.close(reader[1])
    wait_for(seen)
    assert seen.read_text() == "here"
    os.set_blocking(reader[0], False)
    with pytest.raises(BlockingIOError):
        os.read(reader[0], 1)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    assert os.read(reader[0], 1) == b""
    os.close(reader[0])


def test_a_killed_warm_job_has_its_signal(tmp_path: Path) -> None:
    words = ["train.steps=1000000", "report=false", f"hydra.run.dir={tmp_path / 'run'}"]
    process = WarmProcess(words, tmp_path / "output.txt", child.build_environment(1, "x"), [])
    wait_for(tmp_path / "run" / "config.yaml")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    process.kill()
    assert child.explain(child.Ended(process.wait(60), "")) == "its process was ended by SIGKILL (out of memory?)"


def test_a_signal_to_all_processes_leaves_the_one_that_waits_for_jobs(tmp_path: Path) -> None:
    """As a batch system sends it; the server that forked the job knows how the job ended."""
    words = ["train.steps=1000000", "train.eval_every=5", "val.tasks=2", "report=false"]
    words += ["device.compile=off", f"hydra.run.dir={tmp_path / 'run'}"]
    process = WarmProcess(words, tmp_path / "output.txt", child.build_environment(1, "x"), [])
    wait_for(tmp_path / "run/checkpoints/best.pt")
    server = int(Path(f"/proc/{process.process.pid}/stat").read_text().rpartition(")")[2].split()[1])
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        os.kill(server, number)
    os.kill(process.process.pid or 0, signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM


def wait_for(path: Path) -> None:
    for _ in range(300):
        if path.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} never came")


class Ending:
    """Stands for the processes of jobs: each leaves a summary and ends with this code."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[list[str]] = []
        self.summary, self.code = '{"status": "completed", "val_error": 0.25}', 0
        monkeypatch.setattr(child, "run_child", self)

    def __call__(self, arguments: list[str], folder: Path, variables: object, keep: object = ()) -> child.Ended:
        self.commands.append(arguments)
        (folder / "summary.json").write_text(self.summary)
        return child.Ended(self.code, "metarun: the reason")


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Ending:
    return Ending(monkeypatch)


def job_in(tmp_path: Path, key: str = "k") -> Job:
    write_sweep(tmp_path, SweepRecord(visit="v"))
    return Job(tmp_path / "job", tmp_path, key, 0, ("seed=0",), (), ())


def test_a_finished_job_is_run_once(tmp_path: Path, processes: Ending) -> None:
    assert run_job(job_in(tmp_path)) == run_job(job_in(tmp_path)) == 0.25
    assert len(processes.commands) == 1
    assert read_job(tmp_path / "job").visits == {"v": True}


def test_other_settings_in_the_same_folder_are_another_run(tmp_path: Path, processes: Ending) -> None:
    run_job(job_in(tmp_path))
    run_job(job_in(tmp_path, key="other"))
    assert len(processes.commands) == 2


def test_finished_jobs_run_again_when_that_is_asked_for(tmp_path: Path, processes: Ending) -> None:
    job = job_in(tmp_path)
    run_job(job)
    write_sweep(tmp_path, SweepRecord(visit="v", again=True))
    run_job(job)
    assert len(processes.commands) == 2


def test_a_failed_job_is_recorded_with_its_reason_and_tried_again(tmp_path: Path, processes: Ending) -> None:
    processes.summary, processes.code = '{"status": "failed"}', 1
    assert run_job(job_in(tmp_path)) == WORST
    record = read_job(tmp_path / "job")
    assert (record.status, record.reason, record.objective) == ("failed", "the reason", WORST)
    processes.summary, processes.code = '{"status": "completed", "val_error": 0.5}', 0
    assert run_job(job_in(tmp_path)) == 0.5
    assert read_job(tmp_path / "job").attempts == 2


def test_a_job_that_neither_trains_nor_tests_succeeds_by_its_exit_code(tmp_path: Path, processes: Ending) -> None:
    """As job=analyze, which leaves its results in the run that it analyses."""
    processes.summary, processes.code = "{}", 2
    run_job(job_in(tmp_path))
    assert read_job(tmp_path / "job").status == "failed"
    processes.code = 0
    assert run_job(job_in(tmp_path)) == WORST  # it has no validation error to minimise
    assert (read_job(tmp_path / "job").status, read_job(tmp_path / "job").reason) == ("completed", "")


def test_a_diverged_job_is_final(tmp_path: Path, processes: Ending) -> None:
    processes.summary, processes.code = '{"status": "diverged", "reason": "NaN at step 3", "val_error": 0.1}', 2
    assert run_job(job_in(tmp_path)) == run_job(job_in(tmp_path)) == WORST
    assert len(processes.commands) == 1
    assert read_job(tmp_path / "job").reason == "NaN at step 3"


def test_an_unfinished_job_with_a_checkpoint_is_resumed_and_one_without_begins_anew(
    tmp_path: Path, processes: Ending
) -> None:
    job = job_in(tmp_path)
    write_sweep(tmp_path, SweepRecord(visit="v"))
    checkpoint = job.folder / "checkpoints" / "last.pt"
    checkpoint.parent.mkdir(parents=True)
    for status, resumes in (("running", True), ("interrupted", True)):
        checkpoint.write_bytes(b"")
        write_job(job.folder, JobRecord(key="k", status=status, attempts=1))
        run_job(job)
        assert any(a.startswith("resume=") for a in processes.commands[-1]) == resumes
    write_job(job.folder, JobRecord(key="k", status="running", attempts=1))
    checkpoint.unlink()
    (job.folder / "metrics.jsonl").write_text("{}\n")
    run_job(job)
    assert "seed=0" in processes.commands[-1]
    assert not (job.folder / "metrics.jsonl").exists()


def test_settings_that_were_edited_during_the_sweep_are_named(tmp_path: Path, processes: Ending) -> None:
    conf = tmp_path / "conf"
    conf.mkdir()
    (conf / "a.yaml").write_text("1")
    job = replace(job_in(tmp_path), settings=(conf,))
    write_sweep(tmp_path, SweepRecord(visit="v", files=identity.yaml_digests([conf])))
    (conf / "a.yaml").write_text("2")
    run_job(job)
    assert [Path(p).name for p in read_job(job.folder).changed] == ["a.yaml"]


def test_the_same_command_finds_its_sweep_and_another_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    key = sitting.command_key(["seed=0,1", "algo=maml"], None)
    assert key == sitting.command_key(["algo=maml", "seed=0,1"], None)
    first = sitting.sweep_folder(key)
    assert sitting.sweep_folder(key) != first  # nothing was begun there
    write_sweep(first, SweepRecord(key=key))
    assert sitting.sweep_folder(key) == first
    assert sitting.sweep_folder(sitting.command_key(["seed=0,1,2"], None)) != first


def records(*given: tuple[str, float | None, float]) -> list[overview.JobState]:
    return [
        overview.JobState(Path(f"job{n}"), JobRecord(number=n, status=status, objective=number, seconds=seconds), False)
        for n, (status, number, seconds) in enumerate(given)
    ]


def test_the_overview_counts_jobs_and_names_the_best() -> None:
    jobs = records(("completed", 0.5, 10.0), ("completed", 0.25, 20.0), ("failed", WORST, 1.0), ("running", None, 0.0))
    sweep = SweepRecord(total=10, width=2)
    counts = overview.count_jobs(jobs, sweep)
    assert counts == overview.Counts(succeeded=2, skipped=0, lost=1, running=1, waiting=6)
    assert overview.estimate_seconds_left(jobs, counts, 2, time.time()) == pytest.approx(6 * 15 / 2)
    assert overview.describe_progress(jobs, sweep)[0].startswith(
        "6 waiting, 1 running, 2 done, 1 failed, best 0.25 (job1)"
    )


def test_the_last_lines_say_how_many_succeeded_and_why_others_did_not() -> None:
    jobs = records(("completed", 0.5, 10.0), ("failed", WORST, 1.0))
    jobs[1] = jobs[1]._replace(record=replace(jobs[1].record, reason="no disk"))
    lines = sitting.last_lines(jobs, overview.count_jobs(jobs, SweepRecord(total=3)))
    assert lines == ["failed: job1: no disk", "1 of 3 jobs succeeded"]


def test_the_step_of_a_running_job_is_that_of_its_last_whole_record(tmp_path: Path) -> None:
    assert overview.read_step(tmp_path) == "starting"
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}\n{"st')
    assert overview.read_step(tmp_path) == "step 20"
