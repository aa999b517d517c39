"""The process of a job: the command that a user would type, its output in a file, how it ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from metarun.errors import one_line
from metarun.jobs.sweep.warm import WarmProcess, can_fork
from metarun.storage import ranks

METARUN = [sys.executable, "-m", "metarun"]
OUTPUT = "output.txt"
PARENT = "METARUN_PARENT"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
TRUST = ("trusted_modules=", "data.urls=")
"""Overrides that are not in a run folder, for it may come from somebody else: a resumed run is given them again."""
FULL_ERROR, TRACEBACK = "HYDRA_FULL_ERROR", "METARUN_TRACEBACK"
"""metarun sets the first for itself; a user who asked for it has the second as well."""

PATIENCE = 60.0
"""Seconds that an interrupted job has for the step at hand and its checkpoint."""


class Ended(NamedTuple):
    """How the process ended."""

    code: int  # negative: by this signal
    last_line: str  # of its output


def build_command(overrides: Sequence[str], flags: Sequence[str], folder: Path, resumes: bool) -> list[str]:
    """The command that runs the job in this folder, from the start or from its checkpoint."""
    trust = [o for o in overrides if o.lstrip("+").startswith(TRUST)]
    begun = [f"resume={quote(folder)}", *trust]
    settings = begun if resumes else [*overrides, "hydra.mode=RUN", f"hydra.run.dir={quote(folder)}"]
    return [*METARUN, *flags, *settings]


def quote(path: Path) -> str:
    """As Hydra's grammar reads it back, whatever is in it."""
    text = str(path).replace("'", "\\'")
    return f"'{text}'"


def build_environment(threads: int, group: str) -> dict[str, str]:
    """The parent's variables, with the job's share of the cores, and the sweep's name for loggers that group runs."""
    shared = {name: str(threads) for name in THREADS}
    given = {k: v for k, v in os.environ.items() if k != FULL_ERROR or TRACEBACK in os.environ}
    return {"WANDB_RUN_GROUP": group, **given, **shared, PARENT: str(os.getpid())}


def run_child(arguments: Sequence[str], folder: Path, variables: dict[str, str], keep: Sequence[int] = ()) -> Ended:
    """Run it to its end. An interrupt of this process, which a terminal sends to both, is raised once it has ended.

    `keep`: file descriptors that the process inherits, as of a lock that should outlive this one.
    """
    process = _start(arguments, folder / OUTPUT, variables, keep)
    try:
        code = process.wait()
    except BaseException:
        try:  # it has time for a checkpoint
            process.wait(PATIENCE)
        except BaseException:  # too long, or a second interrupt
            process.kill()
            process.wait()
        raise
    lines = [line for line in read_tail(folder / OUTPUT).decode(errors="replace").splitlines() if line.strip()]
    return Ended(code, one_line(lines[-1]) if lines else "")


def _start(
    arguments: Sequence[str], output: Path, variables: dict[str, str], keep: Sequence[int]
) -> subprocess.Popen[bytes] | WarmProcess:
    if list(arguments[: len(METARUN)]) == METARUN and can_fork():
        return WarmProcess(arguments[len(METARUN) :], output, variables, keep)
    with open(output, "ab") as file:
        return subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=variables, pass_fds=keep
        )


def read_tail(path: Path, most: int = 4096) -> bytes:
    """The last bytes of a file, `most` at most."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - most))
        return file.read()


def explain(ended: Ended) -> str:
    """Why a process failed."""
    if ended.code < 0:
        name = signal.Signals(-ended.code).name
        memory = " (out of memory?)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{memory}"
    return ended.last_line.removeprefix("metarun: ") or f"its process ended with code {ended.code}"


def end_with_parent() -> None:
    """In a job's process, or a rank: stop as on SIGTERM, with a checkpoint, when the sweep's or torchrun's is gone."""
    parent = int(os.environ.pop(PARENT, "0")) or (os.getppid() if ranks.size() > 1 else 0)
    if not parent:
        return

    forked = multiprocessing.parent_process()  # else its server would be the parent
    lives: Callable[[], bool] = forked.is_alive if forked else lambda: os.getppid() == parent

    def watch() -> None:
        while lives():
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="parent").start()
