"""Jobs of a Slurm cluster that are stopped, killed and requeued. Run where there is a cluster:

    pytest tests/faults/test_slurm.py --basetemp=FOLDER

FOLDER is one that the nodes share. Slurm waits two minutes before a requeued job starts again, unless `AuthInfo` in
slurm.conf has a shorter `cred_expire`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import MODULE, TINY, batch_script, here

from metarun.errors import one_line
from metarun.storage.sweep_records import read_job

MANY = [*TINY, "train.steps=2000", "train.log_every=50", "train.eval_every=500", "train.checkpoint_every=500"]
LONGEST = 900.0  # seconds in the queue


def why_not() -> str:
    """Why there is no cluster here; empty if there is one."""
    if shutil.which("sbatch") is None:
        return "there is no sbatch"
    asked = subprocess.run(["sinfo", "--noheader", "--format=%a%T"], capture_output=True, text=True, timeout=60)
    if asked.returncode:
        return f"sinfo: {one_line(asked.stderr)}"
    return "" if any(line.startswith("up") for line in asked.stdout.splitlines()) else "no partition of Slurm is up"


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> None:
    if reason := why_not():
        pytest.skip(reason)


pytestmark = [pytest.mark.long, pytest.mark.xdist_group("slurm")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The digests of the runs of two seeds."""
    place = tmp_path_factory.mktemp("undisturbed")
    return [here(place / str(seed), *MANY, f"seed={seed}").summary["params_sha256"] for seed in (0, 1)]


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LONGEST
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.5)


def lines_of(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def describe(job: str) -> dict[str, str]:
    words = slurm("scontrol", "show", "job", "--oneliner", job).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def submit(place: Path, *options: str) -> str:
    (place / "job.sh").write_text(batch_script(place, MANY))
    return slurm("sbatch", "--parsable", f"--output={place}/%a.out", f"--chdir={place}", *options, f"{place}/job.sh")


def summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.exists() else {}


def completed(folder: Path) -> bool:
    return summary(folder).get("status") == "completed"


def kill(job: str, folder: Path, ancestors: int = 0) -> None:
    """`kill -9` of the process that writes there, or of its parent's parent, the worker of a sweep."""
    pid = (folder / ".run.lock").read_text().split()[1]
    up = f"for _ in {' '.join('x' * ancestors)}; do pid=$(ps -o ppid= $pid); done;"
    script = ["bash", "-c", f"pid={pid}; {up} kill -9 $pid"]
    subprocess.run(
        ["srun", "--overlap", f"--jobid={describe(job)['JobId']}", *script], timeout=60
    )  # it ends with the job


@pytest.mark.parametrize("how", ["SIGTERM", "requeued", "killed"])
def test_a_job_that_is_stopped_ends_with_the_bits_of_an_undisturbed_one(
    how: str, undisturbed: list[str], tmp_path: Path
) -> None:
    job, run = submit(tmp_path), tmp_path / "maml-seed0"
    until(lambda: lines_of(run) >= 4, "the job did not start")
    if how == "SIGTERM":  # as ahead of a time limit; the script requeues
        slurm("scancel", "--signal=TERM", job)
    elif how == "requeued":
        slurm("scontrol", "requeue", job)
    else:
        kill(job, run)
        until(lambda: describe(job)["JobState"] == "FAILED", "the killed job did not end")
        slurm("scontrol", "requeue", job)
    until(lambda: completed(run), "the job did not complete")
    assert summary(run)["params_sha256"] == undisturbed[0]
    assert describe(job)["Restarts"] == "1"


def test_a_job_that_is_cancelled_does_not_start_again(tmp_path: Path) -> None:
    job, run = submit(tmp_path), tmp_path / "maml-seed0"
    until(lambda: lines_of(run) >= 4, "the job did not start")
    slurm("scancel", job)
    until(lambda: describe(job)["JobState"] == "CANCELLED", "the job was not cancelled")
    assert summary(run)["status"] == "interrupted"


def test_a_job_of_an_array_is_requeued_and_no_other(undisturbed: list[str], tmp_path: Path) -> None:
    """The array's last job, whose SLURM_JOB_ID is the number of all."""
    job, runs = submit(tmp_path, "--array=0-1"), [tmp_path / f"maml-seed{seed}" for seed in (0, 1)]
    until(lambda: lines_of(runs[1]) >= 4, "the job did not start")
    slurm("scancel", "--signal=TERM", f"{job}_1")
    until(lambda: all(map(completed, runs)), "the jobs did not complete")
    assert [summary(run)["params_sha256"] for run in runs] == undisturbed
    assert [describe(f"{job}_{seed}")["Restarts"] for seed in (0, 1)] == ["0", "1"]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGUSR2", "requeued", "cancelled", "killed"])
def test_a_sweep_outlives_what_happens_to_one_of_its_jobs(how: str, undisturbed: list[str], tmp_path: Path) -> None:
    """SIGTERM, requeued: pre-emption with and without grace; SIGUSR2: submitit's own signal."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the plugin is not installed (extra submitit)")
    command = [*MODULE, "-m", "seed=0,1", *MANY, "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1"]
    command += ["hydra.sweep.dir=sweep"]
    sweep = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    folder = tmp_path / "sweep"
    until(lambda: any(lines_of(run) >= 4 for run in folder.glob("seed0*")), "the job did not start")
    run = next(folder.glob("seed0*"))
    job = next(path.parent.name for path in folder.glob(".submitit/*_0/*_submitted.pkl"))
    if how == "requeued":
        slurm("scontrol", "requeue", job)
    elif how == "cancelled":
        slurm("scancel", job)
    elif how == "killed":
        kill(job, run, ancestors=2)
    else:
        slurm("scancel", f"--signal={how}", job)
    output, _ = sweep.communicate(timeout=LONGEST)
    again = how in ("cancelled", "killed")
    assert sweep.returncode == int(again), output
    assert ("1 of 2 jobs succeeded" in output) == again
    assert read_job(run).status == ("interrupted" if again else "completed")
    if again:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LONGEST)
        assert done.returncode == 0, done.stdout + done.stderr
    found = [summary(next(folder.glob(f"seed{seed}*")))["params_sha256"] for seed in (0, 1)]
    assert found == undisturbed
    assert read_job(run).attempts == 2
