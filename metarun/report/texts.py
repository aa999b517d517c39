"""The report's tables as Markdown, as csv and as LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metarun.report.files import pairs_beside
from metarun.report.read import Run
from metarun.report.several import all_pairs, several, tables
from metarun.report.table import to_csv, to_latex, to_markdown
from metarun.report.tables import raw_pairs, raw_results

HEAD = "% Needs \\usepackage{booktabs}; wide tables fit with \\resizebox or \\small.\n"


def markdown(runs: Sequence[Run], target: Path) -> None:
    notes = [f"* {run.name}: {sentence}" for run in runs for sentence in run.missing]
    parts = [to_markdown(table) for table in tables(several(runs))]
    _write(target, "\n".join([*parts, *(["### What is missing", "", *notes, ""] if notes else [])]))


def latex(runs: Sequence[Run], target: Path) -> None:
    floats = [to_latex(table, f"metarun{at}") + "\n" for at, table in enumerate(tables(several(runs)), 1)]
    _write(target, "\n".join([HEAD, *floats]))


def comma_separated(runs: Sequence[Run], target: Path) -> None:
    """Results at `target`; pairs, where there are any, beside it."""
    shown = several(runs)
    _write(target, to_csv(raw_results(shown.results)))
    found = [pair for members in all_pairs(shown.groups) for pair in members]
    if found:
        _write(pairs_beside(target), to_csv(raw_pairs(found)))


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
