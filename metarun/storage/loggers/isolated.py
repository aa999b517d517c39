"""Run a third-party logger in a thread of its own: it may fail or hang, and the run goes on at its own speed.

Its calls are made one after another. A logger that raises is switched off with one warning. Its start is waited for
START seconds and its end FINISH seconds; calls that do not fit into the queue are dropped and counted.
metrics.jsonl has every metric either way.
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
WAITING = 10_000  # calls in the queue
LONGEST = 200  # characters of an error message


class IsolatedSink(Sink):
    """The sink `name`, called in a thread of its own."""

    def __init__(self, name: str, sink: Sink, warn: Callable[[str], None]) -> None:
        self.name, self.sink, self.warn = name, sink, warn
        self.calls: queue.Queue[tuple[Callable[[], None], threading.Event | None]] = queue.Queue(WAITING)
        self.refusal: SettingError | None = None
        self.off, self.warned, self.dropped = False, False, 0
        self.started, self.ended = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True, name=f"logger {name}")

    def start(self, run: dict[str, Any]) -> None:
        """Start the logger. Raise `SettingError` if it finds at once that it is not installed."""
        self.thread.start()
        self._call(lambda: self.sink.start(run), self.started)
        if not self.started.wait(START):
            self._warn_once(f"did not start within {START:g} s; records wait for it")
        if self.refusal is not None:
            raise self.refusal

    def log(self, record: Record) -> None:
        self._call(lambda: self.sink.log(record))

    def note(self, message: str) -> None:
        self._call(lambda: self.sink.note(message))

    def finish(self, summary: dict[str, Any]) -> None:
        copied = dict(summary)
        self._call(lambda: self.sink.finish(copied), self.ended)
        if not self.off and not self.ended.wait(FINISH):
            self._warn_once(f"did not end within {FINISH:g} s and is left behind")
        if self.dropped:
            self.warn(f"logger={self.name}: {self.dropped} calls were left out; metrics.jsonl has every number")
        self.off = True

    def _call(self, call: Callable[[], None], done: threading.Event | None = None) -> None:
        if self.off:
            return
        try:
            self.calls.put_nowait((call, done))
        except queue.Full:
            self.dropped += 1

    def _work(self) -> None:
        while True:
            call, done = self.calls.get()
            try:
                if not self.off:
                    call()
            except SettingError as error:
                self.off, self.refusal = True, error
            except BaseException as error:  # a logger may even call sys.exit
                self.off = True
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                message = one_line(error)[:LONGEST].removeprefix(f"logger={self.name}: ")
                self._warn_once(f"{kind}{message}; it is switched off")
                log.info("logger=%s", self.name, exc_info=True)
            if done is not None:
                done.set()

    def _warn_once(self, why: str) -> None:
        if not self.warned:
            self.warned = True
            self.warn(f"logger={self.name}: {why}; the run goes on, metrics.jsonl has every number")
