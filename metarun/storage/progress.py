"""A progress bar for work before a run starts: live on a terminal, one line elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from metarun.storage import ranks

T = TypeVar("T")


def in_notebook_cell() -> bool:
    """Whether a cell `!metarun` runs this: it looks like a terminal, but shows each state of a line below the last."""
    return "JPY_PARENT_PID" in os.environ


def track(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yield the items, with a progress bar on stderr."""
    if not sys.stderr.isatty() or in_notebook_cell() or ranks.rank() > 0:
        print_notice(f"{label}: {total} items")
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as live

    yield from live(items, description=label, total=total, console=Console(stderr=True), transient=True)


def print_notice(message: str) -> None:
    """Print a line for the user on stderr; of several processes, rank 0 prints."""
    if ranks.rank() == 0:
        print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def track_bytes(label: str, done: int, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that counts received bytes, with a progress bar; `total` equals `done` if it is unknown."""
    if not sys.stderr.isatty() or in_notebook_cell() or ranks.rank() > 0:
        print_notice(f"downloading {label}: {total - done} bytes" if total > done else f"downloading {label}")
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("downloading {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, completed=done, total=total if total > done else None)
        yield lambda count: bar.advance(task, count)
