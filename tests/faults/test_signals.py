"""What a run does when it is asked to stop."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from runs import ENDLESS, here, started, wait_for_lines

from metarun import checkpoint, training
from metarun.errors import Interrupted


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
        patched.setattr(training, "test", lambda active, state: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted) as caught:
            here(tmp_path / "run")
    assert caught.value.number == signal.SIGTERM
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "interrupted"
    here(tmp_path / "run", resume=True)
    for name in ("metrics.jsonl", "test.json"):
        assert (tmp_path / "run" / name).read_bytes() == (ended / name).read_bytes()
