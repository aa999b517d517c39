"""What a run does when it is asked to stop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers.runs import ENDLESS, TINY, batch_script, here, started, wait_for_lines

from metarun.errors import Interrupted
from metarun.jobs import train
from metarun.training import checkpoint


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.long)],
    ids=lambda n: n.name,
)
def test_a_signal_ends_a_run_soon_with_a_checkpoint_and_its_code(number: signal.Signals, tmp_path: Path) -> None:
    process = started(ENDLESS, f"hydra.run.dir={tmp_path}/run", "report=true", cwd=tmp_path)
    wait_for_lines(tmp_path / "run/metrics.jsonl", 20, process)
    process.send_signal(number)
    start = time.monotonic()
    output, errors = process.communicate(timeout=60)
    assert time.monotonic() - start < 5
    assert (process.returncode, errors) == (128 + number, "")
    assert f"continue with: metarun resume={tmp_path}/run" in output
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert checkpoint.load(tmp_path / "run/checkpoints/last.pt")["step"] == summary["steps_done"]


@pytest.mark.slow
def test_a_signal_that_a_batch_system_repeats_does_not_end_a_run_that_is_closing(tmp_path: Path) -> None:
    """slurmd and srun both send it, some tenths of a second apart."""
    process = started(ENDLESS, f"hydra.run.dir={tmp_path}/run", cwd=tmp_path)
    wait_for_lines(tmp_path / "run/metrics.jsonl", 20, process)
    while json.loads((tmp_path / "run/summary.json").read_text())["status"] == "running" and process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.002)
    process.communicate(timeout=60)
    assert process.returncode in (128 + signal.SIGTERM, -signal.SIGTERM)  # the latter while the process ends
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_a_second_interrupt_ends_a_run_in_the_middle_of_a_step(tmp_path: Path) -> None:
    """A step that takes minutes; the first interrupt waits for it."""
    process = started(
        ENDLESS, f"hydra.run.dir={tmp_path}/run", "algo.inner_steps=3000", "train.tasks=64", "device.chunk_size=1",
        "algo.first_order=true", "diagnostics=off", cwd=tmp_path,
    )  # fmt: skip
    while not (tmp_path / "run/timing.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode == 130
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "running"


def test_a_signal_during_the_test_ends_it_and_the_run_goes_on_there(
    ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(train, "test", lambda active, state: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted) as caught:
            here(tmp_path / "run")
    assert caught.value.number == signal.SIGTERM
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "interrupted"
    here(tmp_path / "run", resume=True)
    for name in ("metrics.jsonl", "test.json"):
        assert (tmp_path / "run" / name).read_bytes() == (ended / name).read_bytes()


MANY = [*TINY, "train.steps=300"]


@pytest.mark.long
def test_a_requeued_batch_job_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    """SIGTERM and five seconds later SIGKILL, as pre-emption does; then both at once; then nothing."""
    script = batch_script(tmp_path, MANY)
    (tmp_path / "job.sh").write_text(script.replace("srun ", "exec "))  # here without Slurm
    run = tmp_path / "maml-seed0"
    lines = 10
    for grace in (5.0, 0.0):
        pipe = subprocess.PIPE
        job = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, stdout=pipe, stderr=pipe, text=True)
        wait_for_lines(run / "metrics.jsonl", lines, job)
        job.send_signal(signal.SIGTERM)
        if grace:
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(grace)
        job.kill()
        job.communicate(timeout=60)
        assert job.returncode in (128 + signal.SIGTERM, -signal.SIGKILL)
        lines = (run / "metrics.jsonl").read_bytes().count(b"\n") + 10
    done = subprocess.run(["bash", "job.sh"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    here(tmp_path / "whole", *MANY)
    for name in ("metrics.jsonl", "test.json"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    kept = [checkpoint.load(folder / "checkpoints/last.pt") for folder in (run, tmp_path / "whole")]
    digests = {checkpoint.digest([k["params"], k["optimizer"], k["step"]]) for k in kept}
    assert len(digests) == 1
