"""torchrun --max-restarts starts all ranks again, with the same command, after one of them was killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import commands
from helpers.ranks import (
    ENDLESS,
    FEW,
    PIPES,
    are_gone,
    environment,
    find_ranks,
    kill_all_in,
    read_lines,
    start_job,
    wait_for_checkpoint,
)
from helpers.runs import MODULE, TINY, here, wait_for_lines

from metarun.storage.launches import MARK

pytestmark = pytest.mark.xdist_group("parallel")
LINUX = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks up processes in /proc")
STEPS = ["train.steps=40", "train.checkpoint_every=5", "train.log_every=1", "train.eval_every=20", "diagnostics=off"]
KILLS = 12


@pytest.fixture(autouse=True)
def _end_all(tmp_path: Path) -> Iterator[None]:
    """End what a test that fails has left: all that works in its folder."""
    yield
    kill_all_in(tmp_path)


def facts(folder: Path) -> tuple[bytes, bytes, Any]:
    """What has to be the same."""
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    return (folder / "metrics.jsonl").read_bytes(), (folder / "test.json").read_bytes(), summary["params_sha256"]


def find_runs(place: Path) -> list[Path]:
    return sorted(place.glob("outputs/2*/*"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, Any]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    here(folder, *STEPS)
    return facts(folder)


STANDALONE = {"TORCHELASTIC_RUN_ID": str(uuid.UUID(int=7))}
NAMED = {"TORCHELASTIC_RUN_ID": "100", "TORCHELASTIC_ERROR_FILE": "/tmp/torchelastic_x/100_y/attempt_{}/0/error.json"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "launch", [STANDALONE, pytest.param(NAMED, marks=pytest.mark.long)], ids=["standalone", "named"]
)
def test_the_same_command_continues_the_run_of_the_attempt_before(
    launch: dict[str, str], undisturbed: tuple[bytes, bytes, Any], tmp_path: Path
) -> None:
    """A single rank; killed before there is a checkpoint, and after."""
    for attempt, lines in enumerate((2, 12)):
        command = start_attempt(launch, attempt, tmp_path)
        run = wait_for_run(tmp_path, command)
        wait_for_lines(run / "metrics.jsonl", lines, command)
        os.kill(command.pid, signal.SIGKILL)
        command.wait(60)
    _, err = start_attempt(launch, 2, tmp_path).communicate()
    assert [folder.resolve() for folder in find_runs(tmp_path)] == [run.resolve()]
    assert f"{run.relative_to(tmp_path)}: torchrun has started the ranks again; this run continues\n" in err
    assert facts(run) == undisturbed


def start_attempt(launch: dict[str, str], attempt: int, cwd: Path, *overrides: str) -> commands.Command:
    variables = {name: value.format(attempt) for name, value in launch.items()}
    return commands.started(*TINY, *STEPS, *overrides, cwd=cwd, **variables)


def wait_for_run(place: Path, command: commands.Command) -> Path:
    end = time.monotonic() + 120
    while not (found := find_runs(place)):
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    return found[0]


def test_a_run_killed_before_its_settings_are_stored_begins_in_the_same_folder(
    undisturbed: tuple[bytes, bytes, Any], tmp_path: Path
) -> None:
    command = start_attempt(STANDALONE, 0, tmp_path)
    run = wait_for_run(tmp_path, command)
    while not (run / MARK).exists():
        assert command.poll() is None, command.communicate()
        time.sleep(0.001)
    os.kill(command.pid, signal.SIGKILL)
    command.wait(60)
    assert not (run / "config.yaml").exists()
    start_attempt(STANDALONE, 1, tmp_path).communicate()
    assert find_runs(tmp_path) == [run]
    assert facts(run) == undisturbed


def test_another_torchrun_or_command_begins_another_run(tmp_path: Path) -> None:
    """Also one to which its user gave the same name; a folder that is named is refused in each attempt."""
    few = ["train.steps=6", "hydra.run.dir=run"]
    assert start_attempt(NAMED, 0, tmp_path, *few).wait(120) == 0
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    other = {**NAMED, "TORCHELASTIC_ERROR_FILE": "/tmp/torchelastic_x/100_z/attempt_{}/0/error.json"}
    for attempt in range(2):
        command = start_attempt(other, attempt, tmp_path, *few, "seed=1")
        _, err = command.communicate()
        assert (command.returncode, read_lines(err)) == (2, err.splitlines())
        assert "holds a run already; resume=" in err
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before
    for launch, seed in ((other, 1), (other, 2), (NAMED, 1)):
        assert start_attempt(launch, 0, tmp_path, "train.steps=6", f"seed={seed}").wait(120) == 0
    seeds = sorted(json.loads((run / "summary.json").read_text())["seed"] for run in find_runs(tmp_path))
    assert seeds == [1, 1, 2]


@LINUX
@pytest.mark.long
@pytest.mark.parametrize("seed", [1])
def test_two_ranks_killed_at_random_end_with_the_bits_of_an_undisturbed_job(seed: int, tmp_path: Path) -> None:
    steps = ["train.steps=800", "train.checkpoint_every=20", "train.log_every=10", "train.eval_every=200", *FEW]
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    process = start_job(2, *steps, cwd=tmp_path / "whole")
    began = time.monotonic()
    wait_for_checkpoint(process, tmp_path / "whole")
    start = time.monotonic() - began
    assert process.communicate(timeout=900)[1] is not None
    (whole,) = find_runs(tmp_path / "whole")
    draw, killed, done = random.Random(seed), 0, 0
    process = start_job(2, *steps, cwd=tmp_path / "cut", options=["--max-restarts=100"])
    while killed < KILLS and process.poll() is None:
        victim = wait_for_ranks(process)[draw.randrange(2)]
        if draw.random() < 0.5:  # at any moment of the start
            time.sleep(draw.uniform(0, start))
        else:  # soon after a further record
            done = wait_for_records(process, tmp_path / "cut", done + draw.randint(1, 8))
            time.sleep(draw.uniform(0, 0.3))
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            killed += 1
    out, err = process.communicate(timeout=900)
    assert (process.returncode, killed) == (0, KILLS), out + err
    (cut,) = find_runs(tmp_path / "cut")
    assert facts(cut) == facts(whole)


def wait_for_records(process: subprocess.Popen[str], place: Path, count: int) -> int:
    """Until the run has as many; how many it has."""
    end = time.monotonic() + 600
    while (found := sum(run.read_bytes().count(b"\n") for run in place.glob("outputs/2*/*/metrics.jsonl"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def wait_for_ranks(process: subprocess.Popen[str]) -> list[int]:
    """The two ranks of an attempt, once none of the attempt before is left."""
    end = time.monotonic() + 120
    while process.poll() is None:
        with contextlib.suppress(OSError):  # one ends at this moment
            found = find_ranks(process)
            if len(found) == 2 and not any(are_gone([pid]) for pid in found):
                return found
        assert time.monotonic() < end
        time.sleep(0.05)
    raise AssertionError(process.communicate())


@LINUX
@pytest.mark.long
@pytest.mark.skipif(not torch.cpu._is_avx2_supported(), reason="portable bits need an x86-64 processor with AVX2")
@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_ranks_continues_a_portable_run_to_the_same_bits(count: int, tmp_path: Path) -> None:
    portable = [*ENDLESS, "train.eval_every=100", "device.deterministic=portable", "device.name=cpu"]
    process = start_job(2, *portable, cwd=tmp_path)
    folder = wait_for_checkpoint(process, tmp_path)
    os.kill(find_ranks(process)[1], signal.SIGKILL)
    process.communicate(timeout=120)
    step = max(json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines())
    more = f"train.steps={step + 200}"
    if count == 1:
        resumed = start_alone(f"resume={folder}", more, cwd=tmp_path)
    else:
        resumed = start_job(count, f"resume={folder}", more, cwd=tmp_path)
    out, err = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, out + err
    whole = start_alone(*portable, more, "hydra.run.dir=whole", cwd=tmp_path)
    out, err = whole.communicate(timeout=600)
    assert whole.returncode == 0, out + err
    assert facts(folder) == facts(tmp_path / "whole")


def start_alone(*overrides: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([*MODULE, *overrides], cwd=cwd, env=environment(cwd), **PIPES)
