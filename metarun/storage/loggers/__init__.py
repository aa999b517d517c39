"""Sinks: where metrics are logged to. A sink receives a run's start, its records, its notes and its end."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol


class Record(NamedTuple):
    """Metrics of one kind at one outer step."""

    kind: str  # train, probe, val, test
    step: int
    values: dict[str, float]  # a function of the settings
    timing: dict[str, float]  # times and memory, which differ from machine to machine


class Sink(Protocol):
    """Where a run's metrics are logged to. `progress`, `work`, `sync` and `note` do nothing unless a sink
    overrides them."""

    def start(self, run: dict[str, Any]) -> None:
        """The run begins; `run` has its name, title, folder, steps, max_minutes, step (where it starts), metric and
        config."""

    def progress(self, step: int, seconds: float) -> None:
        """Called after each outer step, with the seconds of training so far."""
        return

    def work(self, label: str, done: int, total: int) -> None:
        """Called during work beside outer steps, such as the test; `total` is 0 where it has no parts to count."""
        return

    def log(self, record: Record) -> None:
        """A record was measured."""

    def sync(self) -> None:
        """What was logged has to outlive a crash of the machine: a checkpoint or the result is written next."""
        return

    def note(self, message: str) -> None:
        """A message for the user."""
        return

    def finish(self, summary: dict[str, Any]) -> None:
        """The run ended, in whichever way."""
