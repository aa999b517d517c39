"""The report's tables as Markdown, as csv and as LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metarun.report.compare.combinations import swept
from metarun.report.read.files import pairs_beside, sweep_beside
from metarun.report.read.jobs import jobs_of
from metarun.report.read.runs import Run
from metarun.report.tables.comparison import raw_pairs, raw_results
from metarun.report.tables.several import all_pairs, several, tables
from metarun.report.tables.sweep import bests, raw_swept, tables_of
from metarun.report.tables.table import to_csv, to_latex, to_markdown

HEAD = "% Needs \\usepackage{booktabs}; wide tables fit with \\resizebox or \\small.\n"


def markdown(runs: Sequence[Run], others: Sequence[Path], target: Path) -> None:
    jobs = jobs_of(runs, others)
    found = swept(jobs)
    notes = [f"* {run.name}: {sentence}" for run in runs for sentence in run.missing]
    parts = [to_markdown(table) for table in [*tables_of(found, jobs), *tables(several(runs))]]
    best = [line for b in (bests(found) if found else ()) for line in (b.sentence, "", "```", b.command, "```", "")]
    _write(target, "\n".join([*best, *parts, *(["### What is missing", "", *notes, ""] if notes else [])]))


def latex(runs: Sequence[Run], others: Sequence[Path], target: Path) -> None:
    jobs = jobs_of(runs, others)
    shown = [*tables_of(swept(jobs), jobs), *tables(several(runs))]
    floats = [to_latex(table, f"metarun{at}") + "\n" for at, table in enumerate(shown, 1)]
    _write(target, "\n".join([HEAD, *floats]))


def comma_separated(runs: Sequence[Run], others: Sequence[Path], target: Path) -> None:
    """Results at `target`; pairs and swept settings, where there are any, beside it."""
    shown = several(runs)
    _write(target, to_csv(raw_results(shown.results)))
    found = [pair for members in all_pairs(shown.groups) for pair in members]
    if found:
        _write(pairs_beside(target), to_csv(raw_pairs(found)))
    settings = swept(jobs_of(runs, others))
    if settings:
        _write(sweep_beside(target), to_csv(raw_swept(settings)))


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
