"""The console: a live view on a terminal, plain lines without control codes elsewhere, a table at the end."""

from __future__ import annotations

import importlib.util
import textwrap
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from metarun.storage.loggers import Record, Sink
from metarun.storage.loggers.tables import format_clock, metrics_line, result_table
from metarun.storage.progress import in_notebook_cell

REFRESH_SECONDS = 0.25
NOT_SHOWN = ("test", "probe")  # the table at the end and the report have these


class PlainConsole(Sink):
    """One line for every `every` seconds of training records or of other work, and one for each validation."""

    def __init__(self, console: Console, every: float = 5.0) -> None:
        self.console, self.every = console, every
        self.steps, self.metric, self.label, self.printed = 0, "", "", float("-inf")

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

    def work(self, label: str, done: int, total: int) -> None:
        if label != self.label:
            self._print(f"{label} ...")
        elif time.monotonic() - self.printed < self.every or done == total:
            return
        else:
            self._print(f"{label}: {done} done")
        self.label, self.printed = label, time.monotonic()

    def note(self, message: str) -> None:
        self._print(message)

    def finish(self, summary: dict[str, Any]) -> None:
        self.console.print(result_table(summary), soft_wrap=True)

    def _print(self, text: str) -> None:
        # soft_wrap: a line for grep stays a line, however narrow rich believes the pipe to be.
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)


class LiveConsole(Sink):
    """A progress bar with the time left, and the latest training metrics below it; validations stay above it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.steps, self.limit, self.metric = 0, None, ""
        self.label, self.drawn = "", 0.0
        self.line = Text("")
        columns = TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.fields[count]}"), Clock()
        self.bar = Progress(*columns, console=console)
        self.task = self.bar.add_task("")
        self.live = Live(console=console, refresh_per_second=4, transient=True)

    def start(self, run: dict[str, Any]) -> None:
        self.steps, self.metric = run["steps"], run["metric"]
        self.limit = run["max_minutes"] and 60 * run["max_minutes"]
        self.console.print(Text(run["title"], style="bold"))
        self.console.print(Text(f"run folder: {run['folder']}"), soft_wrap=True)
        self.live.start()
        self._draw("starting", 0.0, 0.0, "")

    def progress(self, step: int, seconds: float) -> None:
        """The bar shows what ends the run first, its steps or its time."""
        done, count = step / self.steps, f"{step}/{self.steps}"
        if self.limit is not None:
            done, count = max(done, seconds / self.limit), f"{count}, at most {format_clock(self.limit)}"
        self._draw("training", done, 1.0, count)

    def work(self, label: str, done: int, total: int) -> None:
        self._draw(label, done, total, f"{done}/{total}" if total else "")

    def log(self, record: Record) -> None:
        if record.kind in NOT_SHOWN:
            return
        timing = {key: value for key, value in record.timing.items() if key != "seconds_left"}  # the bar has it
        text = f"step {record.step}  {metrics_line(record._replace(timing=timing), self.metric)}"
        if record.kind == "train":
            self.line = Text(text)
        else:
            self.console.print(Text(text, style="green" if record.values.get("improved") else ""))

    def note(self, message: str) -> None:
        lines = textwrap.wrap(message, self.console.width, break_long_words=False, break_on_hyphens=False)
        self.console.print(Text("\n".join(lines), style="yellow", overflow="ignore"), crop=False)  # paths in one piece

    def finish(self, summary: dict[str, Any]) -> None:
        self.live.stop()
        self.console.print(result_table(summary), crop=False)

    def _draw(self, label: str, done: float, total: float, count: str) -> None:
        """Show how much of the work `label` is done; `total` is 0 where nobody knows."""
        new = label != self.label
        if not new and time.monotonic() - self.drawn < REFRESH_SECONDS:
            return
        if new:
            self.bar.reset(self.task, description=label, total=total or None, count=count)
            self.line = Text("") if label != "training" else self.line
        self.label, self.drawn = label, time.monotonic()
        self.bar.update(self.task, completed=done, count=count)
        self.live.update(Group(self.bar, self.line), refresh=new)


class Clock(ProgressColumn):
    """The time that the work has taken, and the time left."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text(format_clock(task.elapsed or 0.0) + ("" if left is None else f", {format_clock(left)} left"))


def console_sink() -> PlainConsole | LiveConsole:
    """A live view on a terminal, and in a notebook that can draw one; plain lines elsewhere."""
    console = Console()
    live = console.is_terminal and not console.is_dumb_terminal and not in_notebook_cell()
    widgets = console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
    return LiveConsole(console) if live or widgets else PlainConsole(console)
