"""Signals that ask a run to stop after the current step: Ctrl-C, and what a batch system sends before it kills."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from metarun.errors import Interrupted
from metarun.storage import ranks

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
"""The last two: what Slurm can send ahead of the time limit (--signal=USR1@60; submitit has it send SIGUSR2), to every
process of a job step. Windows has neither."""


class StopRequests:
    """Whether a stop signal came, and which."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.at_once = False
        self.before: dict[int, Any] = {}  # the handlers of the process

    @property
    def received(self) -> bool:
        return self.number is not None

    @contextlib.contextmanager
    def listen(self, at_once: bool = False) -> Iterator[None]:
        """Within the block, signals are requests; with `at_once` they raise `Interrupted`.

        Once one came they stay requests until `release`: batch systems repeat them, and a run that was stopped has its
        summary to write.
        """
        if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
            yield
            return
        numbers = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
        self.before = {number: signal.signal(number, self._handle) for number in numbers}
        self.at_once = at_once
        try:
            yield
        finally:
            self.at_once = False
            if not self.received:
                self.release()

    def release(self) -> None:
        """Give the signals back to the handlers of the process."""
        for number, handler in self.before.items():
            if signal.getsignal(number) == self._handle:  # not where a rank that exits has set another
                signal.signal(number, handler)
        self.before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # torchrun passes on signals that a terminal or a batch system sends to all processes anyway, so a second one
        # means nothing there: torchrun itself kills after half a minute. Nor does a second SIGTERM, which batch systems
        # repeat.
        if self.received and number == signal.SIGINT and ranks.size() == 1:
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # the live view had hidden the cursor
            os._exit(128 + number)  # the last checkpoint is as good as after a kill
        self.number = number
        if self.at_once:
            raise Interrupted(number)
