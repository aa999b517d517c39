"""Loggers that misbehave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metarun.storage.loggers import Record


class Strange:
    """A logger that does `what` at one of its calls."""

    def __init__(self, at: str, what: Callable[[], None]) -> None:
        self.at, self.what = at, what
        self.calls: list[str] = []

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.at:
            self.what()

    def start(self, run: dict[str, Any]) -> None:
        self._called("start")

    def progress(self, step: int, seconds: float) -> None:
        self._called("progress")

    def work(self, label: str, done: int, total: int) -> None:
        self._called("work")

    def log(self, record: Record) -> None:
        self._called("log")

    def note(self, message: str) -> None:
        self._called("note")

    def finish(self, summary: dict[str, Any]) -> None:
        self._called("finish")


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act
