"""Sinks: where metrics are logged to. A sink receives a run's start, its records, its notes and its end."""

from __future__ import annotations

from typing import Any, NamedTuple


class Record(NamedTuple):
    """Metrics of one kind at one outer step."""

    kind: str  # train, probe, val, test
    step: int
    values: dict[str, float]  # a function of the settings
    timing: dict[str, float]  # times and memory, which differ from machine to machine


class Sink:
    """Where a run's metrics are logged to. A sink overrides the methods that it has something to do for."""

    def start(self, run: dict[str, Any]) -> None:
        """The run begins; `run` has its name, title, folder, steps, step (where it starts), metric and config."""

    def progress(self, step: int) -> None:
        """Called after each outer step."""

    def log(self, record: Record) -> None:
        """A record was measured."""

    def note(self, message: str) -> None:
        """A message for the user."""

    def finish(self, summary: dict[str, Any]) -> None:
        """The run ended, in whichever way."""
