"""The command line as it is typed, in processes of its own: output, exit codes, interruption, resuming."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.commands import metarun, started

TINY = ["train.steps=60", "train.tasks=4", "train.log_every=5", "train.eval_every=10", "train.checkpoint_every=10"]
TINY += ["val.tasks=4", "test.tasks=5", "test.steps=3", "device.compile=false", "device.threads=1", "report=false"]
OTHER_SIGNALS = (signal.SIGTERM, signal.SIGKILL)
MODULE = [sys.executable, "-m", "metarun"]


def from_the_start(*overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """With a start of Python, as typed; the other tests spare it."""
    return subprocess.run([*MODULE, *overrides], cwd=cwd, capture_output=True, text=True, timeout=300)


def only_run(cwd: Path) -> Path:
    (found,) = (cwd / "outputs").glob("*-*/*")
    assert (cwd / "outputs/latest").resolve() == found.resolve()
    return found


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_prints_plain_lines_and_leaves_its_folder(tmp_path: Path) -> None:
    done = from_the_start(*TINY[:-1], "seed=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "test mse:" in done.stdout
    assert "95 % interval" in done.stdout
    folder = only_run(tmp_path)
    assert f"run folder: {folder}" in done.stdout
    assert f"report: {folder}/report.html" in done.stdout
    assert "maml on sinusoid" in (folder / "report.html").read_text()
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {"config.yaml", "metrics.jsonl", "timing.jsonl", "summary.json", "test.json", "metarun.log"} <= names
    assert {"checkpoints/last.pt", "checkpoints/best.pt", ".hydra/config.yaml", ".hydra/overrides.yaml"} <= names
    assert not [n for n in names if n.endswith(".tmp")]


def test_the_summary_holds_what_must_stand_beside_a_number(tmp_path: Path) -> None:
    assert metarun(*TINY, "algo=imaml", cwd=tmp_path).returncode == 0
    folder = only_run(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    wanted = "algo data ways shots split norm first_order metric mean ci95 n_tasks curve steps_done tasks_seen seconds"
    wanted += (
        " tasks_per_second peak_memory_mb params_sha256 episodes_sha256 split_sha256 seed diverged versions status"
    )
    assert set(wanted.split()) <= set(summary)
    assert (summary["algo"], summary["data"], summary["seed"]) == ("imaml", "sinusoid", 0)
    assert summary["tasks_seen"] == 240
    records = read_lines(folder / "metrics.jsonl")
    measures = {"adaptation_gain", "query_loss/1", "grad_norm", "grad_variance", "grad_snr", "grad_cosine"}
    assert {"loss", "distance", *measures} <= set(records[0])
    assert {"update_ratio", "stationarity", "cg_residual", "cg_negative", "lr"} <= set(records[0])
    test = json.loads((folder / "test.json").read_text())
    mean = sum(test["scores"][test["steps"].index(summary["headline_step"])]) / 5
    assert mean == pytest.approx(summary["mean"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [signal.SIGINT, *(pytest.param(s, marks=pytest.mark.long) for s in (signal.SIGTERM, signal.SIGKILL))]
)
def test_an_interrupted_run_resumes_to_the_same_bits(how: signal.Signals, tmp_path: Path) -> None:
    """Same weights, same metrics.jsonl byte for byte, wherever the run was cut."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert metarun(*TINY, "train.steps=200", f"hydra.run.dir={whole}", cwd=tmp_path).returncode == 0
    process = started(*TINY, "train.steps=200", f"hydra.run.dir={cut}", cwd=tmp_path)
    wait_for_lines(cut / "metrics.jsonl", 20)
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    if how != signal.SIGKILL:
        assert process.returncode == 128 + how
        assert f"continue with: metarun resume={cut}" in output
        assert json.loads((cut / "summary.json").read_text())["status"] == "interrupted"
    assert len(read_lines(cut / "metrics.jsonl")) < len(read_lines(whole / "metrics.jsonl"))
    assert metarun(f"resume={cut}", cwd=tmp_path).returncode == 0
    assert (whole / "metrics.jsonl").read_bytes() == (cut / "metrics.jsonl").read_bytes()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, cut)]
    assert summaries[0]["params_sha256"] == summaries[1]["params_sha256"]
    assert summaries[1]["status"] == "completed"


def wait_for_lines(path: Path, count: int) -> None:
    """Until a run that works in the background has written so many lines."""
    for _ in range(1200):
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.05)
    pytest.fail(f"{path} did not reach {count} lines")


@pytest.mark.long
def test_a_line_cut_off_in_writing_is_forgotten_on_resuming(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert metarun(*TINY, "train.max_minutes=1e-9", f"hydra.run.dir={folder}", cwd=tmp_path).returncode == 0
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 1')
    assert metarun(f"resume={folder}", "train.max_minutes=null", cwd=tmp_path).returncode == 0
    assert [r["step"] for r in read_lines(folder / "metrics.jsonl") if r["kind"] == "val"] == [10, 20, 30, 40, 50, 60]


def test_resuming_refuses_to_become_another_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert metarun(*TINY, f"hydra.run.dir={folder}", cwd=tmp_path).returncode == 0
    done = metarun(f"resume={folder}", "algo.inner_lr=0.5", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("metarun: algo.inner_lr=0.5: cannot change in resume=")
    longer = metarun(f"resume={folder}", "train.steps=70", cwd=tmp_path)
    assert longer.returncode == 0
    assert json.loads((folder / "summary.json").read_text())["steps_done"] == 70


@pytest.mark.long
def test_a_damaged_checkpoint_gives_way_to_its_predecessor(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert metarun(*TINY, f"hydra.run.dir={folder}", cwd=tmp_path).returncode == 0
    last = folder / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:100])
    done = metarun(f"resume={folder}", "train.steps=70", cwd=tmp_path)
    assert done.returncode == 0
    assert "last.pt is damaged" in done.stderr
    assert "last.pt.previous of step 50 is used instead" in done.stderr
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"")
    done = metarun(f"resume={folder}", "train.steps=80", cwd=tmp_path)
    assert done.returncode == 2
    assert "no checkpoint to read: last.pt is damaged" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.long  # make test has a sweep in test_sweep_runs.py, reports of several runs in test_report_page.py
def test_a_sweep_runs_every_job_and_returns_finite_numbers(tmp_path: Path) -> None:
    more = ["train.steps=10", "algo=maml,reptile", "report=true"]
    done = metarun("-m", *TINY, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (page,) = (tmp_path / "multirun").glob("*/*/report.html")
    assert f"report of the sweep: {page.relative_to(tmp_path)}" in done.stdout
    assert "Comparison of 2 runs" in page.read_text()
    summaries = [json.loads(p.read_text()) for p in (tmp_path / "multirun").rglob("summary.json")]
    assert {s["algo"] for s in summaries} == {"maml", "reptile"}
    assert len({s["episodes_sha256"] for s in summaries}) == 1


def test_a_diverging_run_stops_before_the_weights_move(tmp_path: Path) -> None:
    """An outer rate of 1e30 sends the second step to infinity; the weights of the first are kept."""
    done = metarun(*TINY, "optim=sgd", "optim.lr=1e30", "train.checkpoint_every=1", cwd=tmp_path)
    assert done.returncode == 2
    assert "non-finite loss or meta-gradient at step 1, task 0, seed 0" in done.stderr
    assert done.stderr.count("\n") == 1
    folder = only_run(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["diverged"], summary["steps_done"]) == ("diverged", True, 1)
    assert (folder / "checkpoints/last.pt").exists()


@pytest.mark.long  # make test has a sweep with a failing and a diverging job in test_sweep_runs.py
def test_a_sweep_goes_on_after_a_diverged_job(tmp_path: Path) -> None:
    done = metarun("-m", *TINY, "train.steps=5", "optim=sgd", "optim.lr=1e30,0.001", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    statuses = [json.loads(p.read_text())["status"] for p in (tmp_path / "multirun").rglob("summary.json")]
    assert sorted(statuses) == ["completed", "diverged"]
    assert "1 of 2 jobs succeeded" in done.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algo=mamll"], "algo=mamll: no such option, did you mean maml"),
        (["algo.inner_lrr=1"], "algo.inner_lrr: no such setting, did you mean inner_lr"),
        (["train.stps=1"], "train.stps: no such setting, did you mean steps?"),
        (["train.steps=abc"], "train.steps=abc: must be a whole number"),
        (["algo.inner_steps=0"], "algo.inner_steps=0: must be at least 1"),
        (["algo=protonet"], "algo=protonet data=sinusoid: this algorithm needs classification"),
        (["job=evaluate", "run=."], ".: is not a run folder"),
        (["job=evaluate"], "run=None: job=evaluate needs a run's folder"),
        (["val=${seed}"], "val=0: is a group of settings, not one setting"),
        (["resume=."], ".: is not a run folder"),
        (["hydra.run.dir=/dev/null/x"], "/dev/null/x: Not a directory"),
        (["train.steps=[1"], "train.steps=[1: cannot be read; close its brackets"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(overrides: list[str], message: str, tmp_path: Path) -> None:
    done = metarun(*overrides, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_a_mistake_is_one_line_from_the_start_too(tmp_path: Path) -> None:
    done = from_the_start("algo.inner_lrr=1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "metarun: algo.inner_lrr: no such setting, did you mean inner_lr or inner_steps?\n"


def test_hydras_full_error_shows_the_traceback(tmp_path: Path) -> None:
    done = metarun("algo.inner_steps=0", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("flag", ["--help", "--cfg=job", "--info=defaults"])
def test_help_and_settings_come_without_importing_torch(flag: str, tmp_path: Path) -> None:
    code = "import sys; from metarun.cli.main import main\n"
    code += "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, *flag.split("=")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "maml" in done.stdout


def test_runs_started_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    running = [started(*TINY, "train.steps=2", cwd=tmp_path) for _ in range(3)]
    assert [p.wait(120) for p in running] == [0, 0, 0]
    runs = {path.parent for path in (tmp_path / "outputs").glob("*-*/*/summary.json")}
    assert len(runs) == 3
    assert (tmp_path / "outputs/latest").resolve() in runs
    assert {path.name for path in (tmp_path / "outputs").iterdir() if path.is_symlink()} == {"latest"}


@pytest.mark.slow
def test_weights_and_biases_works_offline_without_an_account(tmp_path: Path) -> None:
    variables = {"WANDB_API_KEY": "", "HOME": str(tmp_path), "WANDB_RUN_GROUP": "name-of-a-sweep"}
    done = metarun(*TINY, "logger=wandb", cwd=tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    (stored,) = only_run(tmp_path).glob("wandb/offline-run-*/*.wandb")  # the path that docs/metrics.md has
    assert b"name-of-a-sweep" in stored.read_bytes()


def test_tensorboard_writes_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert metarun(*TINY, "logger=tensorboard", cwd=tmp_path).returncode == 0
    assert list(only_run(tmp_path).glob("tensorboard/events.*"))


def test_broken_yaml_of_the_users_own_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "conf/algo/bad.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("algo:\n  a: [1,\n b: 2\n")
    done = metarun("-cd", "conf", "algo=bad", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "conf/algo/bad.yaml" in done.stderr


def test_a_job_whose_output_is_closed_ends_without_a_message(tmp_path: Path) -> None:
    run = Path(__file__).resolve().parents[1] / "fixtures/runs_0_1/maml_sinusoid"
    shutil.copytree(run, tmp_path / "run")
    job = ["job=analyze", "run=run", "analysis=support_resampling", "analysis.tasks=20", "report=false"]
    command = [sys.executable, "-u", "-m", "metarun", *job]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 141
    assert process.stderr.read() == ""


def test_a_refused_command_leaves_no_folder(tmp_path: Path) -> None:
    for wrong in (["algo.inner_lr=-1"], ["run=outputs"], ["job=evaluate"], ["job=predict", "run=nowhere"]):
        assert metarun(*wrong, cwd=tmp_path).returncode == 2
        assert not list(tmp_path.iterdir()), wrong
    (tmp_path / "mine").mkdir()
    assert metarun("algo.inner_lr=-1", "hydra.run.dir=mine", cwd=tmp_path).returncode == 2
    assert (tmp_path / "mine").exists()
