"""Jobs of several processes (torchrun), and their ranks as processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FEW = ["val.tasks=5", "test.tasks=7", "test.steps=2", "device.compile=off", "device.threads=1", "report=false"]
ENDLESS = ["train.steps=100000", "train.checkpoint_every=20", "train.log_every=20", "train.eval_every=100000", *FEW]


def start_ranks(processes: int, *arguments: str, cwd: Path, options: Sequence[str] = ()) -> subprocess.Popen[str]:
    """`torchrun --nproc-per-node=P ...`, at a port of its own; what lies in `cwd` can be imported."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        *options,
    ]
    return subprocess.Popen([*torchrun, *arguments], cwd=cwd, env=environment(cwd), **PIPES)


PIPES: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def environment(cwd: Path) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(cwd)])
    return {**os.environ, "PYTHONPATH": paths}


def start_job(processes: int, *overrides: str, cwd: Path, options: Sequence[str] = ()) -> subprocess.Popen[str]:
    """`torchrun ... -m metarun OVERRIDES`."""
    return start_ranks(processes, "-m", "metarun", *overrides, cwd=cwd, options=options)


def wait_for_checkpoint(process: subprocess.Popen[str], cwd: Path) -> Path:
    """The run's folder once it has a checkpoint."""
    end = time.monotonic() + 300  # a busy machine takes long to import torch several times
    while not (found := list(cwd.glob("outputs/*/*/checkpoints/last.pt"))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    return found[0].parents[1]


def kill_all_in(folder: Path) -> None:
    """Kill every process that works in a folder or below it."""
    for found in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (found / "cwd").resolve().is_relative_to(folder) and (found / "cwd").exists():
                os.kill(int(found.name), signal.SIGKILL)


def find_ranks(process: subprocess.Popen[str]) -> list[int]:
    """The processes of the ranks, the first one's first."""
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    return sorted(map(int, children), key=rank_of)


def rank_of(pid: int) -> int:
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((int(v[5:]) for v in variables if v.startswith(b"RANK=")), -1)


def read_lines(text: str) -> list[str]:
    """The lines that metarun itself has printed."""
    return [line for line in text.splitlines() if line.startswith("metarun: ")]


def are_gone(pids: Sequence[int]) -> bool:
    """Whether all have ended; one whose parent has not asked for its exit code has."""
    return not any(_state(pid) in "RSDTt" for pid in pids)


def _state(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "gone"
