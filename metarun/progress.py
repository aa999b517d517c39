"""A progress bar for work before a run starts: live on a terminal, one line elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yield the items, showing on stderr how far along they are."""
    if not sys.stderr.isatty():
        print(f"{label}: {total} items", file=sys.stderr, flush=True)
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as live

    yield from live(items, description=label, total=total, console=Console(stderr=True), transient=True)
