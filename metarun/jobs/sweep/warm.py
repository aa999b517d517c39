"""Processes of jobs that begin with their imports done: forks of a server process that `multiprocessing` keeps.

The server imports `IMPORTED` once, before it has a second thread, and nothing else runs in it. A job's process is a
fork of it, so that jobs share no state with each other or with the sweep. Imports are most of the time that a job
takes beside its training.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from metarun.training.signals import STOP_SIGNALS

IMPORTED = ["metarun.cli.main", "metarun.jobs.train", "metarun.report.write", "torch._inductor.compile_fx"]


class WarmProcess:
    """`python -m metarun WORDS` in a fork of the server, with the part of `subprocess.Popen` that a sweep needs."""

    def __init__(self, words: Sequence[str], output: Path, variables: Mapping[str, str], keep: Sequence[int]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        output.touch()
        before, method = dict(os.environ), multiprocessing.get_start_method(allow_none=True)
        os.environ.update(variables)  # libraries read their numbers of threads when the server loads them
        multiprocessing.set_start_method("forkserver", force=True)  # joblib's own would be sent to the process
        self.process: ForkServerProcess = context.Process(
            target=_run, args=(list(words), str(output), dict(variables), Descriptors(keep))
        )
        try:
            _start_server()
            self.process.start()
        finally:
            multiprocessing.set_start_method(method, force=True)
            os.environ.clear()
            os.environ.update(before)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; negative: by this signal. Raises `subprocess.TimeoutExpired`."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout or 0)
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()


class Descriptors:
    """Open files that go to another process when this is sent to it, and stay open there."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = numbers

    def __getstate__(self) -> Any:
        return [DupFd(number) for number in self.numbers]

    def __setstate__(self, sent: Any) -> None:
        self.numbers = [each.detach() for each in sent]


def _start_server() -> None:
    """Start the server, unless it runs, with the signals blocked that ask a job to stop.

    A batch system sends them to all processes. The server is the jobs' parent: without it, nothing would wait for them.
    """
    resource_tracker.ensure_running()  # first, for its start unblocks SIGTERM
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _stop_signals())
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop_signals() -> set[int]:
    return {getattr(signal, name) for name in STOP_SIGNALS}


def can_fork() -> bool:
    """Whether jobs can be forks: elsewhere than on Linux a fork may fail, and a daemon has no children."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def _run(words: list[str], output: str, variables: dict[str, str], keep: Descriptors) -> None:
    """In the job's process: become the command."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _stop_signals())
    with open(output, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv[1:] = words
    try:
        runpy.run_module("metarun", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends its processes without them
        keep.numbers = ()  # open for as long as the process lives
