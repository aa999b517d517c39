"""Sweeps from the command line: every launcher that is installed, failing jobs, kills, and what is not run twice."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.commands import metarun

import metarun as package
from metarun.storage.sweep_records import read_job, read_sweep

pytestmark = pytest.mark.xdist_group("sweep_runs")  # what they compare with is made once
ROOT = Path(__file__).resolve().parents[2]
TINY = ["train.steps=6", "train.tasks=2", "train.eval_every=3", "train.checkpoint_every=1", "val.tasks=4"]
TINY += ["test.tasks=4", "test.steps=1", "device.compile=off", "report=false", "diagnostics=off"]
MULTIRUN = [sys.executable, "-m", "metarun", "-m"]
COMMAND = [*MULTIRUN, *TINY]


def sweep(*overrides: str, cwd: Path, flags: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    return metarun("-m", *flags, *TINY, *overrides, cwd=cwd)


def jobs(cwd: Path) -> dict[str, Any]:
    """Each job's record and summary by the folder's name."""
    found = {}
    for path in (cwd / "multirun").rglob("job.json"):
        summary = path.parent / "summary.json"
        found[path.parent.name] = read_job(path.parent), json.loads(summary.read_text()) if summary.exists() else {}
    return found


def results(cwd: Path) -> set[tuple[int, str, float]]:
    """What must not depend on how a sweep was run: seed, final parameters, the sweeper's number."""
    return {(s["seed"], s["params_sha256"], r.objective) for r, s in jobs(cwd).values()}


def missing(module: str) -> bool:
    return importlib.util.find_spec(module) is None


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = sweep("seed=0,1", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_sweep_prints_what_it_does_and_leaves_a_folder_for_each_job(undisturbed: Path) -> None:
    found = jobs(undisturbed)
    assert sorted(name.rpartition("-")[0] for name in found) == ["seed0", "seed1"]
    assert all(r.status == "completed" and r.attempts == 1 for r, _ in found.values())
    assert len({s["params_sha256"] for _, s in found.values()}) == 2


def test_the_same_command_skips_what_is_done(undisturbed: Path) -> None:
    before = {p: p.stat().st_mtime for p in undisturbed.rglob("summary.json")}
    done = sweep("seed=0,1", cwd=undisturbed)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("skipped") == 2
    assert "2 of 2 jobs succeeded (2 of them in an earlier run of this sweep)" in done.stdout
    assert {p: p.stat().st_mtime for p in undisturbed.rglob("summary.json")} == before


@pytest.mark.long
def test_a_failing_and_a_diverging_job_leave_the_others_alone(tmp_path: Path) -> None:
    done = sweep("algo.inner_lr=0.01,-1,1e25", cwd=tmp_path)
    assert done.returncode == 1
    assert "1 of 3 jobs succeeded" in done.stdout
    assert "  algo.inner_lr=-1.0: must be above 0" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    states = sorted((r.status, r.objective) for r, _ in jobs(tmp_path).values())
    assert states[0][0] == "completed"
    assert states[1:] == [("diverged", 1e9), ("failed", 1e9)]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("n_jobs=0", ".n_jobs=0: must be how many jobs run at once, or negative: -1 all cores, -2 all but one"),
        ("n_job=2", ".n_job: no such setting, did you mean n_jobs?"),
        (
            "pre_dispatch=many hydra.launcher.n_jobs=2",
            ": cannot start jobs with these settings (ValueError: 'many' is not a valid",
        ),
    ],
)
def test_a_launchers_setting_that_cannot_work_is_one_line(setting: str, message: str, tmp_path: Path) -> None:
    if missing("hydra_plugins.hydra_joblib_launcher"):
        pytest.skip("the plugin is not installed (extra joblib)")
    done = sweep("seed=0,1", "hydra/launcher=joblib", *f"hydra.launcher.{setting}".split(), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"metarun: hydra.launcher{message}")
    assert done.stderr.count("\n") == 1
    assert jobs(tmp_path) == {}


def test_a_setting_that_does_not_exist_ends_the_sweep_before_its_jobs(tmp_path: Path) -> None:
    done = sweep("seed=0,1", "algo.inner_lrr=3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "metarun: algo.inner_lrr: no such setting, did you mean inner_lr or inner_steps?\n"


@pytest.mark.long
@pytest.mark.parametrize("victim", ["sweep", "job"])
def test_a_killed_sweep_goes_on_where_it_stopped_and_ends_as_an_undisturbed_one(
    victim: str, undisturbed: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen([*COMMAND, "seed=0,1"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    checkpoint = first(tmp_path, "checkpoints/last.pt")
    pid = process.pid if victim == "sweep" else child_of(process.pid)
    os.kill(pid, signal.SIGKILL)
    process.wait(120)
    assert process.returncode == (-signal.SIGKILL if victim == "sweep" else 1)
    done = sweep("seed=0,1", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(tmp_path) == results(undisturbed)
    assert read_job(checkpoint.parents[1]).attempts == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR2, marks=pytest.mark.long)])
def test_a_signal_to_all_processes_of_a_sweep_leaves_checkpoints(number: signal.Signals, tmp_path: Path) -> None:
    """As a batch system sends it, to a sweep that is a job of its own."""
    command = [*COMMAND, "seed=0,1", "train.steps=100000", "train.checkpoint_every=50000"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    best = first(tmp_path, "checkpoints/best.pt")  # of the first validation
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + number, "stopped; the same command goes on from here\n")
    assert best.with_name("last.pt").exists()
    assert read_job(best.parents[1]).status == "interrupted"


@pytest.mark.long
def test_a_sweep_outlives_a_worker_of_its_launcher(undisturbed: Path, tmp_path: Path) -> None:
    if missing("hydra_plugins.hydra_submitit_launcher"):
        pytest.skip("the plugin is not installed (extra submitit)")
    command = [*COMMAND, "seed=0,1", "hydra/launcher=submitit_local"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    lock = first(tmp_path, ".run.lock")
    job = int(lock.read_text().split()[1])
    os.kill(parent_of(parent_of(job)), signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "1 of 2 jobs succeeded" in output
    assert "ended without a result (state" in output
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(tmp_path) == results(undisturbed)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def first(cwd: Path, name: str) -> Path:
    for _ in range(600):
        found = list((cwd / "multirun").rglob(name)) if (cwd / "multirun").exists() else []
        if found:
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"{name} never came")


def child_of(pid: int) -> int:
    """The process of the job that runs: a child of the sweep's child that forks jobs."""
    return next(job for server in children(pid) for job in children(server))


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for path in found for word in path.read_text().split()]


@pytest.mark.long
def test_two_sweeps_at_once_in_one_folder_run_each_job_once(undisturbed: Path, tmp_path: Path) -> None:
    first_of_two = subprocess.Popen([*COMMAND, "seed=0,1"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    first(tmp_path, "job.json")
    second = sweep("seed=0,1", cwd=tmp_path)
    first_of_two.communicate(timeout=120)
    assert first_of_two.returncode == second.returncode == 0
    assert results(tmp_path) == results(undisturbed)
    assert all(record.attempts == 1 for record, _ in jobs(tmp_path).values())


@pytest.mark.long
def test_settings_that_are_edited_between_two_sittings_are_named_and_their_jobs_run_again(tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "experiment"
    mine.mkdir(parents=True)
    (mine / "edited.yaml").write_text("# @package _global_\nalgo:\n  inner_lr: 0.01\n")
    flags = ["--config-dir", str(tmp_path / "mine")]
    assert sweep("experiment=edited", "seed=0", cwd=tmp_path, flags=flags).returncode == 0
    (mine / "edited.yaml").write_text("# @package _global_\nalgo:\n  inner_lr: 0.02\n")
    done = sweep("experiment=edited", "seed=0", cwd=tmp_path, flags=flags)
    assert done.returncode == 0, done.stderr
    assert f"settings edited since the sweep began: {mine / 'edited.yaml'}" in done.stdout
    assert len(jobs(tmp_path)) == 2


LAUNCHERS = [
    ("joblib", "hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
    ("submitit_local", "hydra_plugins.hydra_submitit_launcher", ["hydra.launcher.timeout_min=5"]),
    ("ray", "hydra_plugins.hydra_ray_launcher", ["+hydra.launcher.ray.init.num_cpus=2"]),
]


@pytest.mark.long
@pytest.mark.parametrize(("launcher", "module", "more"), LAUNCHERS)
def test_every_launcher_gives_the_same_runs(
    launcher: str, module: str, more: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    if missing(module):
        pytest.skip(f"the plugin is not installed (extra {launcher.partition('_')[0]})")
    # A start of its own: launchers start workers from the interpreter, which a fork of the tests' server is not.
    command = [*COMMAND, "seed=0,1", f"hydra/launcher={launcher}", *more]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 jobs succeeded" in done.stdout
    assert results(tmp_path) == results(undisturbed)
    (folder,) = (tmp_path / "multirun").glob("*/*")
    record = read_sweep(folder)
    assert record.width * record.threads <= (os.cpu_count() or 1) or record.threads == 1


@pytest.mark.long
def test_optuna_takes_failures_and_goes_on_from_what_is_done(tmp_path: Path) -> None:
    if missing("hydra_plugins.hydra_optuna_sweeper"):
        pytest.skip("the plugin is not installed (extra optuna)")
    more = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1"]
    more += ["algo.inner_lr=tag(log, interval(1e-3, 1e30))"]
    done = sweep(*more, cwd=tmp_path)
    assert "jobs succeeded" in done.stdout, done.stderr
    before = set(jobs(tmp_path))
    again = sweep(*more, cwd=tmp_path)
    assert set(jobs(tmp_path)) == before
    assert again.returncode == done.returncode


def test_a_plugin_that_is_not_installed_is_named_with_its_extra(tmp_path: Path) -> None:
    if not missing("hydra_plugins.hydra_ray_launcher"):
        pytest.skip("the plugin is installed")
    done = sweep("seed=0,1", "hydra/launcher=ray", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "metarun: hydra/launcher=ray: is not installed; pip install 'metarun[ray]'\n"


SHIPPED = sorted((ROOT / "conf/experiment/sweep").glob("*.yaml"))
MARKS = {"reg_weight": pytest.mark.long}  # on Omniglot, which it reads first


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem, marks=MARKS.get(p.stem, ())) for p in SHIPPED])
def test_each_shipped_sweep_composes_and_its_first_job_takes_two_steps(path: Path, tmp_path: Path) -> None:
    params = yaml.safe_load(path.read_text())["hydra"]["sweeper"]["params"]
    chosen = [f"{key}={str(values).split(',')[0]}" for key, values in params.items()]
    needs_data = "omniglot" in path.read_text()
    if needs_data and not (ROOT.parent / "shared/data/omniglot").exists():
        pytest.skip("needs Omniglot")
    data = [f"data.root={ROOT.parent / 'shared/data/omniglot'}"] if needs_data else []
    tiny = ["train.steps=2", "val.tasks=2", "test.tasks=2", "device.compile=off", "report=false", *data]
    config = package.compose([f"experiment=sweep/{path.stem}", *chosen, *tiny])
    assert package.run(config, tmp_path / "run").status == "completed"
