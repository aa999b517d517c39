"""What a job prints: lines and small tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table


def show(*parts: str | Table) -> None:
    """Print lines as they are, neither wrapped nor read as markup, and tables."""
    console = Console()
    for part in parts:
        if isinstance(part, str):
            console.print(part, soft_wrap=True, highlight=False, markup=False)
        else:
            console.print(part)


def small_table(*columns: str, text: Sequence[str] = ()) -> Table:
    """A table without an edge: text in the first column and in those named in `text`, numbers in the others."""
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        if i == 0 or column in text:
            table.add_column(column, overflow="fold")
        else:
            table.add_column(column, justify="right")
    return table
