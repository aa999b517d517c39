"""SIGINT and SIGTERM ask for a stop after the step at hand; a second one interrupts at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from metarun import ranks


class StopRequests:
    """Whether somebody asked."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """While this is active, signals ask."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread may listen
            yield
            return
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                if signal.getsignal(number) == self._ask:  # not where a rank that leaves has set another
                    signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        # torchrun passes on what a terminal or a batch system sends to all processes anyway: a second signal says
        # nothing new there. It kills after half a minute.
        if self.asked and ranks.size() == 1:
            raise KeyboardInterrupt
        self.asked = True
