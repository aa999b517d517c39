"""Ranks that are killed, hang, fail or are asked to stop, and what the job prints and leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.hosts import Host, can_make_hosts, two_hosts
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

from metarun.training import checkpoint

pytestmark = pytest.mark.xdist_group("parallel")
LINUX = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks up processes in /proc")


@pytest.fixture(autouse=True)
def _end_all(tmp_path: Path) -> Iterator[None]:
    """End what a test that fails has left: all that works in its folder."""
    yield
    kill_all_in(tmp_path)


@LINUX
@pytest.mark.long
@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_rank_ends_the_job_with_its_reason_and_an_intact_checkpoint(victim: int, tmp_path: Path) -> None:
    process = start_job(2, *ENDLESS, cwd=tmp_path)
    folder, pids = wait_for_checkpoint(process, tmp_path), find_ranks(process)
    began = time.monotonic()
    os.kill(pids[victim], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 15
    assert process.returncode != 0
    assert are_gone(pids)
    (line,) = read_lines(err)
    assert f"rank {victim} ended" in line
    step = checkpoint.load(folder / "checkpoints/last.pt")["step"]
    assert step % 20 == 0
    if victim == 1:
        kept = re.escape(str(folder / "checkpoints/last.pt"))
        assert re.search(rf"the run stopped at step \d+, the last checkpoint is {kept}", line)
        assert json.loads((folder / "summary.json").read_text())["status"] == "failed"


@LINUX
@pytest.mark.parametrize("receiver", [pytest.param(r, marks=pytest.mark.long) for r in ("rank 1", "torchrun")])
def test_a_signal_stops_all_ranks_after_the_same_step(receiver: str, tmp_path: Path) -> None:
    process = start_job(2, *ENDLESS, cwd=tmp_path)
    folder, pids = wait_for_checkpoint(process, tmp_path), find_ranks(process)
    os.kill(process.pid if receiver == "torchrun" else pids[1], signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert read_lines(err) == [], err
    assert out.count("metarun: maml") == 1
    assert f"continue with: metarun resume={folder}" in out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    step = checkpoint.load(folder / "checkpoints/last.pt")["step"]
    assert step == summary["steps_done"]


@LINUX
@pytest.mark.long
@pytest.mark.parametrize(("victim", "count"), [(0, 2), (1, 3)])
def test_a_stopped_rank_is_named_and_ends_with_the_job(victim: int, count: int, tmp_path: Path) -> None:
    process = start_job(count, *ENDLESS, cwd=tmp_path)
    folder, pids = wait_for_checkpoint(process, tmp_path), find_ranks(process)
    began = time.monotonic()
    os.kill(pids[victim], signal.SIGSTOP)
    while not are_gone(pids):
        assert time.monotonic() - began < 60
        time.sleep(0.1)
    _, err = process.communicate(timeout=60)
    (line,) = read_lines(err)
    assert line.startswith(f"metarun: rank {victim} gave no sign of life for 15 s")
    assert checkpoint.load(folder / "checkpoints/last.pt")["step"] % 20 == 0
    if victim:
        assert json.loads((folder / "summary.json").read_text())["status"] == "failed"


@LINUX
@pytest.mark.long
def test_a_job_that_is_stopped_as_a_whole_goes_on_later(tmp_path: Path) -> None:
    """As a batch system does, longer than the patience."""
    process = start_job(2, *ENDLESS, "device.rank_patience=4", cwd=tmp_path)
    folder, pids = wait_for_checkpoint(process, tmp_path), find_ranks(process)
    for number, seconds in ((signal.SIGSTOP, 8), (signal.SIGCONT, 8)):
        for pid in pids:
            os.kill(pid, number)
        time.sleep(seconds)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert read_lines(err) == []
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"


@LINUX
@pytest.mark.long
def test_ranks_whose_torchrun_is_killed_stop_with_a_checkpoint(tmp_path: Path) -> None:
    process = start_job(2, *ENDLESS, cwd=tmp_path)
    folder, pids = wait_for_checkpoint(process, tmp_path), find_ranks(process)
    process.kill()
    _, err = process.communicate(timeout=60)
    assert are_gone(pids)
    assert read_lines(err) == []
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert checkpoint.load(folder / "checkpoints/last.pt")["step"] == summary["steps_done"]


def start_on_hosts(hosts: list[Host], *overrides: str, cwd: Path) -> list[subprocess.Popen[str]]:
    """One torchrun with one rank on each host; nothing but the network is shared."""
    processes = []
    for number, host in enumerate(hosts):
        (cwd / str(number)).mkdir(exist_ok=True)
        command = [*host.prefix, sys.executable, "-m", "torch.distributed.run", f"--nnodes={len(hosts)}"]
        command += [f"--node-rank={number}", f"--master-addr={hosts[0].address}", "--master-port=29500"]
        env = environment(cwd) | {"GLOO_SOCKET_IFNAME": "eth"}
        command += ["--nproc-per-node=1", "-m", "metarun", *overrides]
        processes.append(subprocess.Popen(command, cwd=cwd / str(number), env=env, **PIPES))
    return processes


@LINUX
@pytest.mark.long
@pytest.mark.skipif(not can_make_hosts(), reason="needs root, and ip of iproute2")
@pytest.mark.parametrize("victim", [1, 0])
def test_ranks_cut_off_from_each_other_end_on_both_sides(victim: int, tmp_path: Path) -> None:
    with two_hosts() as hosts:
        processes = start_on_hosts(hosts, *ENDLESS, cwd=tmp_path)
        folder = wait_for_checkpoint(processes[0], tmp_path / "0")
        pids = [pid for process in processes for pid in find_ranks(process)]
        began = time.monotonic()
        hosts[victim].cut_off()
        errors = [process.communicate(timeout=90)[1] for process in processes]
        assert time.monotonic() - began < 60
    assert are_gone(pids)
    (first,), (second,) = map(read_lines, errors)
    assert first.startswith("metarun: rank 1 gave no sign of life for 15 s; the run stopped at step")
    assert second == "metarun: rank 1 had no answer from torchrun's store for 15 s"
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"


@LINUX
@pytest.mark.long
@pytest.mark.skipif(not can_make_hosts(), reason="needs root, and ip of iproute2")
def test_a_slow_and_lossy_network_changes_no_bit(tmp_path: Path) -> None:
    """Every frame 5 ms late, one of 50 lost."""
    short = ["train.steps=20", "train.eval_every=20", "train.checkpoint_every=10", *FEW]
    found = []
    for name, network in (("whole", (0.0, 0.0)), ("lossy", (0.005, 0.02))):
        (tmp_path / name).mkdir()
        with two_hosts(*network) as hosts:
            processes = start_on_hosts(hosts, *short, cwd=tmp_path / name)
            assert [process.wait(timeout=240) for process in processes] == [0, 0]
        (summary,) = (tmp_path / name).glob("0/outputs/*/*/summary.json")
        found.append(json.loads(summary.read_text())["params_sha256"])
    assert found[0] == found[1]


FAILING = """
from dataclasses import dataclass
from metarun.storage import ranks
from metarun.data.sinusoid import Sinusoid

@dataclass(frozen=True)
class Failing(Sinusoid):
    def episodes(self, split, seed, step, tasks, spec):
        if split == "train" and step == 30 and ranks.rank() == 1:
            raise MemoryError("no room for 3 GB")
        return super().episodes(split, seed, step, tasks, spec)
"""


@pytest.mark.long
def test_a_rank_that_fails_has_the_first_one_say_why(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    process = start_job(2, *ENDLESS, "trusted_modules=[failing]", "data._target_=failing.Failing", cwd=tmp_path)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 60
    (line,) = read_lines(err)
    (folder,) = tmp_path.glob("outputs/*/*")
    said = f"rank 1: MemoryError: no room for 3 GB; the run stopped at step 30, the last checkpoint is {folder}"
    assert line == f"metarun: {said}/checkpoints/last.pt"
    assert said in out
    assert process.returncode != 0


@pytest.mark.long
def test_a_mistake_is_told_once_and_no_folder_is_left(tmp_path: Path) -> None:
    process = start_job(2, "algo.inner_lrr=1", cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert read_lines(err) == ["metarun: algo.inner_lrr: no such setting, did you mean inner_lr or inner_steps?"]
    assert len(re.findall(r"exitcode *: 2 ", err)) == 2, err
    assert out == ""


@pytest.mark.long
def test_a_sweep_is_refused(tmp_path: Path) -> None:
    process = start_job(2, "-m", "seed=0,1", cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert read_lines(err) == ["metarun: -m: a sweep starts its runs itself; not under torchrun with 2 processes"]
    assert list(tmp_path.iterdir()) == []
    assert out == ""
