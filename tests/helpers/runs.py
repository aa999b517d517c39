"""Tiny runs for the tests of faults: as typed, in a process of its own, or in this one."""

from __future__ import annotations

import shlex
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import metarun
from helpers import commands
from metarun.jobs.result import Result

TINY = ["train.steps=20", "train.tasks=2", "train.log_every=2", "train.eval_every=5", "train.checkpoint_every=5"]
TINY += ["val.tasks=2", "test.tasks=3", "test.steps=2", "device.compile=false", "device.threads=1", "report=false"]
ENDLESS = "train.steps=100000"
MODULE = [sys.executable, "-m", "metarun"]


SWEEPS_PAGE = Path(__file__).resolve().parents[2] / "docs/sweeps.md"


def batch_script(place: Path, settings: Sequence[str]) -> str:
    """The one that docs/sweeps.md has for a job of Slurm, with a small run and its folders below `place`."""
    page = SWEEPS_PAGE.read_text()
    script = textwrap.dedent(page[page.index("    #!/bin/bash") :].split("\n\n")[0]) + "\n"
    script = script.replace("srun metarun", f"srun {shlex.join(MODULE)}").replace("runs/", f"{place}/")
    return script.replace("algo=maml", shlex.join(["algo=maml", *settings]))


def started(
    *overrides: str, cwd: Path, prepare: Callable[[], None] | None = None
) -> subprocess.Popen[str] | commands.Command:
    """With a start of Python only where something has to be prepared before it."""
    if prepare is None:
        return commands.started(*TINY, *overrides, cwd=cwd)
    pipe = subprocess.PIPE
    command = [*MODULE, *TINY, *overrides]
    return subprocess.Popen(command, cwd=cwd, stdout=pipe, stderr=pipe, text=True, preexec_fn=prepare)


def here(folder: Path, *overrides: str, resume: bool = False) -> Result:
    """A run in this process."""
    config = metarun.compose([*TINY, *overrides])
    config.resume = str(folder) if resume else None
    return metarun.run(config, folder)


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str] | commands.Command) -> None:
    """Until the run has written so many records."""
    for _ in range(2400):
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not reach {count} lines")
