"""Signals that ask for a stop after the step at hand: Ctrl-C, and what a batch system sends before it kills."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from metarun.errors import Interrupted
from metarun.storage import ranks

ASKING = ("SIGINT", "SIGTERM", "SIGUSR1")
"""SIGUSR1: what Slurm is often told to send ahead of the time limit (--signal=USR1@60). Windows has none."""


class StopRequests:
    """Whether somebody asked, and by which signal."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.at_once = False

    @property
    def asked(self) -> bool:
        return self.number is not None

    @contextlib.contextmanager
    def heard(self, at_once: bool = False) -> Iterator[None]:
        """While this is active, signals ask; with `at_once` they raise `Interrupted`: there is nothing to finish."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread may listen
            yield
            return
        numbers = [getattr(signal, name) for name in ASKING if hasattr(signal, name)]
        before = {number: signal.signal(number, self._ask) for number in numbers}
        self.at_once = at_once
        try:
            yield
        finally:
            for number, handler in before.items():
                if signal.getsignal(number) == self._ask:  # not where a rank that leaves has set another
                    signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        # torchrun passes on what a terminal or a batch system sends to all processes anyway: a second signal says
        # nothing new there. It kills after half a minute. Nor does a second SIGTERM, which batch systems repeat.
        if self.asked and number == signal.SIGINT and ranks.size() == 1:
            _leave(number)
        self.number = number
        if self.at_once:
            raise Interrupted(number)


def _leave(number: int) -> None:
    """End the process where it stands; the last checkpoint is as good as after a kill."""
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # the live view had hidden the cursor
    os._exit(128 + number)
