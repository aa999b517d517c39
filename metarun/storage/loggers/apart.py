"""A logger of somebody else's, kept apart: it may fail, or not answer, and the run goes on at its own speed.

Its calls are made one after another in a thread of their own. What raises is switched off with one note. A start is
waited for START seconds and an end FINISH seconds; records that it cannot take in time are left out, and counted.
metrics.jsonl has every number whatever becomes of it.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from metarun.errors import SettingError, UserError, one_line
from metarun.storage.loggers import Record, Sink

log = logging.getLogger(__name__)

START, FINISH = 30.0, 30.0  # seconds
WAITING = 10_000  # records that may wait to be taken
LONGEST = 200  # signs of an error's words

Tell = Callable[[str], None]


class Apart:
    """The sink `name`, in a thread that nobody waits for longer than he said."""

    def __init__(self, name: str, sink: Sink, tell: Tell) -> None:
        self.name, self.sink, self.tell = name, sink, tell
        self.calls: queue.Queue[tuple[Callable[[], None], Callable[[], None]]] = queue.Queue(WAITING)
        self.refusal: SettingError | None = None
        self.off, self.told, self.lost = False, False, 0
        self.started, self.ended = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True, name=f"logger {name}")

    def start(self, run: dict[str, Any]) -> None:
        """`SettingError` where the logger says at once that it is not installed."""
        self.thread.start()
        self._call(lambda: self.sink.start(run), self.started.set)
        if not self.started.wait(START):
            self._note(f"did not start within {START:g} s; records wait for it")
        if self.refusal is not None:
            raise self.refusal

    def progress(self, step: int) -> None:
        """Loggers that are kept apart have nothing to do at a step."""

    def log(self, record: Record) -> None:
        self._call(lambda: self.sink.log(record))

    def note(self, message: str) -> None:
        self._call(lambda: self.sink.note(message))

    def finish(self, summary: dict[str, Any]) -> None:
        copied = dict(summary)
        self._call(lambda: self.sink.finish(copied), self.ended.set)
        if not self.off and not self.ended.wait(FINISH):
            self._note(f"did not end within {FINISH:g} s and is left behind")
        if self.lost:
            self.tell(f"logger={self.name}: {self.lost} calls were left out; metrics.jsonl has every number")
        self.off = True

    def _call(self, call: Callable[[], None], then: Callable[[], None] = lambda: None) -> None:
        if self.off:
            return
        try:
            self.calls.put_nowait((call, then))
        except queue.Full:
            self.lost += 1

    def _work(self) -> None:
        while True:
            call, then = self.calls.get()
            if not self.off:
                self._try(call)
            then()

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except SettingError as error:
            self.off, self.refusal = True, error
        except BaseException as error:  # a logger may even call sys.exit
            self.off = True
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            self._note(f"{kind}{one_line(error)[:LONGEST].removeprefix(f'logger={self.name}: ')}; it is switched off")
            log.info("logger=%s", self.name, exc_info=True)

    def _note(self, why: str) -> None:
        """Once, however often it fails."""
        if not self.told:
            self.told = True
            self.tell(f"logger={self.name}: {why}; the run goes on, metrics.jsonl has every number")
