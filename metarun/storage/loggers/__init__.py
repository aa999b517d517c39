"""Where numbers go. A sink is told of a run's start, its records, its notes and its end."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol


class Record(NamedTuple):
    """Numbers of one kind at one outer step."""

    kind: str  # train, probe, val, test
    step: int
    values: dict[str, float]  # a function of the settings
    timing: dict[str, float]  # of the clock and the machine


class Sink(Protocol):
    def start(self, run: dict[str, Any]) -> None:
        """`run`: name, folder, steps, step (where it starts), metric, config."""

    def progress(self, step: int) -> None:
        """An outer step was done; called for each."""

    def log(self, record: Record) -> None: ...

    def note(self, message: str) -> None:
        """A sentence for the user."""

    def finish(self, summary: dict[str, Any]) -> None:
        """The run ended, however it did."""
