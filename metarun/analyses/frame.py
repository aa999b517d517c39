"""An analysis is a list of cells and a way to measure one; its table is written cell by cell, so that it resumes.

The folder of an analysis has results.jsonl (a line a cell, as they are done), and at the end results.csv, results.json
(settings, rows, what they add up to), figure.png and figure.svg; further figures have names of their own.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from metarun.analyses.context import Context
from metarun.report.figures.drawing import Drawing, style
from metarun.storage.json_values import replace_nonfinite
from metarun.storage.run_folder import RunFolder

Cell = dict[str, Any]
"""Where a measurement is taken: axis -> value, plain and hashable as JSON."""

Row = dict[str, Any]
"""A cell, and what was measured there."""


class Analysis(Protocol):
    """A frozen dataclass; its fields are the settings below `analysis.`"""

    def cells(self, context: Context) -> Sequence[Cell]:
        """What is to be measured, in the order in which it is."""

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        """The numbers of one cell."""

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        """What the whole table says; `message` is a sentence for the terminal."""

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Drawing | Sequence[Drawing]:
        """The table as a figure, or as several."""


@dataclass(frozen=True)
class Table:
    """results.jsonl: rows by cell."""

    path: Path

    def rows(self) -> list[Row]:
        """What is there already; a line that was cut off is measured again."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        return [row for row in map(_parsed, lines) if row is not None]

    def add(self, row: Row) -> None:
        with self.path.open("ab+") as file:
            start = b"\n" if _cut_off(file) else b""
            file.write(start + json.dumps(replace_nonfinite(row)).encode() + b"\n")


def run_analysis(analysis: Analysis, context: Context, say: Any) -> dict[str, Any]:
    """Measure what is missing, then write the results; returns what is in results.json."""
    context.folder.mkdir(parents=True, exist_ok=True)
    table = Table(context.folder / "results.jsonl")
    cells = list(analysis.cells(context))
    done = {_key(cell, row): row for row in table.rows() for cell in cells if _within(cell, row)}
    start, missing = time.monotonic(), [c for c in cells if _key(c, c) not in done]
    if len(missing) < len(cells):
        say(f"{len(cells) - len(missing)} of {len(cells)} cells were measured before")
    for count, cell in enumerate(missing, 1):
        row = replace_nonfinite(cell | analysis.measure(context, cell))
        table.add(row)
        done[_key(cell, cell)] = row
        left = (time.monotonic() - start) / count * (len(missing) - count)
        say(progress(len(cells) - len(missing) + count, len(cells), row, left))
    rows = [done[_key(c, c)] for c in cells]
    return write_results(analysis, context, rows)


def write_results(analysis: Analysis, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
    summary = analysis.summarise(context, rows)
    results = {"settings": context.config.analysis, "summary": summary, "rows": rows}
    RunFolder(context.folder).write_json("results.json", results)
    write_csv(context.folder / "results.csv", rows)
    with style():
        drawn = analysis.draw(rows, summary)
        for count, drawing in enumerate([drawn] if isinstance(drawn, Drawing) else drawn):
            for ending in ("png", "svg"):
                stem = drawing.name if count else "figure"
                drawing.figure.savefig(context.folder / f"{stem}.{ending}", dpi=200)
    return results


def measured(context: Context, cell: Cell) -> Row:
    """The row of a cell that comes before, for one that is told as a difference to it."""
    return next(row for row in reversed(Table(context.folder / "results.jsonl").rows()) if _within(cell, row))


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Numbers and texts; what is longer than one of these stays in results.json."""
    flat = [{k: v for k, v in row.items() if not isinstance(v, (list, dict))} for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(flat)


def progress(count: int, total: int, row: Row, left: float) -> str:
    """A line of the terminal; intervals are left to the table."""
    shown = {k: v for k, v in row.items() if not isinstance(v, (list, dict)) and not k.startswith("half")}
    numbers = "  ".join(f"{k} {_short(v)}" for k, v in shown.items())
    remaining = f"  {left:.0f} s left" if count < total else ""
    return f"{count}/{total}  {numbers}{remaining}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _cut_off(file: BinaryIO) -> bool:
    """Whether the last line has no end: another one must not join it."""
    if not file.seek(0, 2):
        return False
    file.seek(-1, 2)
    return file.read(1) != b"\n"


def _parsed(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _key(cell: Cell, row: Row) -> str:
    return json.dumps({axis: row.get(axis) for axis in sorted(cell)})


def _within(cell: Cell, row: Row) -> bool:
    return all(axis in row and row[axis] == value for axis, value in cell.items())
