"""The console: a live view on a terminal, plain lines without control codes elsewhere, a table at the end."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from metarun.storage.loggers import Record, Sink
from metarun.storage.loggers.tables import metrics_line, result_table

REFRESH_SECONDS = 0.25
NOT_SHOWN = ("test", "probe")  # the table at the end and the report have these


class PlainConsole(Sink):
    """One line for every `every` seconds of training records, and one for each validation."""

    def __init__(self, console: Console, every: float = 5.0) -> None:
        self.console, self.every = console, every
        self.steps, self.metric, self.printed = 0, "", float("-inf")

    def start(self, run: dict[str, Any]) -> None:
        self.steps, self.metric = run["steps"], run["metric"]
        self._print(run["title"])
        self._print(f"run folder: {run['folder']}")

    def log(self, record: Record) -> None:
        if record.kind in NOT_SHOWN:
            return
        if record.kind == "train":
            if time.monotonic() - self.printed < self.every and record.step < self.steps:
                return
            self.printed = time.monotonic()
        self._print(f"step {record.step}/{self.steps}  {metrics_line(record, self.metric)}")

    def note(self, message: str) -> None:
        self._print(message)

    def finish(self, summary: dict[str, Any]) -> None:
        self.console.print(result_table(summary), soft_wrap=True)

    def _print(self, text: str) -> None:
        # soft_wrap: a line for grep stays a line, however narrow rich believes the pipe to be.
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)


class LiveConsole(Sink):
    """A progress bar with the time left, and the latest training and validation metrics below it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.metric, self.drawn = "", 0.0
        self.lines = {"train": Text(""), "val": Text("")}
        self.bar = Progress(
            TextColumn("training"), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn(), console=console
        )
        self.live = Live(console=console, refresh_per_second=4, transient=True)

    def start(self, run: dict[str, Any]) -> None:
        self.metric = run["metric"]
        self.console.print(Text(run["title"], style="bold"))
        self.console.print(Text(f"run folder: {run['folder']}"), soft_wrap=True)
        self.task = self.bar.add_task("training", total=run["steps"], completed=run["step"])
        self.live.start()
        self._draw()

    def progress(self, step: int) -> None:
        if time.monotonic() - self.drawn > REFRESH_SECONDS:
            self.bar.update(self.task, completed=step)
            self._draw()

    def log(self, record: Record) -> None:
        if record.kind in NOT_SHOWN:
            return
        style = "green" if record.kind == "val" else ""
        self.lines[record.kind] = Text(f"step {record.step}  {metrics_line(record, self.metric)}", style=style)

    def note(self, message: str) -> None:
        self.console.print(Text(message, style="yellow"))

    def finish(self, summary: dict[str, Any]) -> None:
        self.live.stop()
        self.console.print(result_table(summary), soft_wrap=True)

    def _draw(self) -> None:
        self.drawn = time.monotonic()
        self.live.update(Group(self.bar, *self.lines.values()))


def console_sink() -> PlainConsole | LiveConsole:
    """A live view on a terminal, and in a notebook that can draw one; plain lines elsewhere."""
    console = Console()
    live = console.is_terminal and not console.is_dumb_terminal
    widgets = console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
    return LiveConsole(console) if live or widgets else PlainConsole(console)
