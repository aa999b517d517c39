"""The report's tables as Markdown, as csv and as LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metarun.report.groups import by_benchmark, group_runs
from metarun.report.read import Run
from metarun.report.results import equal_compute, pairs, result
from metarun.report.table import Table, to_csv, to_latex, to_markdown
from metarun.report.tables import budget_table, matrix_table, pair_table, raw_pairs, raw_results, result_table

HEAD = "% Needs \\usepackage{booktabs}; wide tables fit with \\resizebox or \\small.\n"


def markdown(runs: Sequence[Run], target: Path) -> None:
    notes = [f"* {run.name}: {sentence}" for run in runs for sentence in run.missing]
    parts = [to_markdown(table) for _, table in tables(runs)]
    _write(target, "\n".join([*parts, *(["### What is missing", "", *notes, ""] if notes else [])]))


def latex(runs: Sequence[Run], target: Path) -> None:
    _write(target, HEAD + "\n".join(to_latex(table, label) + "\n" for label, table in tables(runs)))


def comma_separated(runs: Sequence[Run], target: Path) -> None:
    """Results at `target`; pairs, where there are any, beside it."""
    groups = group_runs(runs)
    _write(target, to_csv(raw_results([result(g) for g in groups])))
    found = [pair for members in by_benchmark(groups).values() for pair in pairs(members)]
    if found:
        _write(pairs_beside(target), to_csv(raw_pairs(found)))


def pairs_beside(target: Path) -> Path:
    """report.csv -> report-pairs.csv"""
    return target.with_name(f"{target.stem}-pairs{target.suffix}")


def tables(runs: Sequence[Run]) -> list[tuple[str, Table]]:
    """Each table with a short name."""
    groups = group_runs(runs)
    results = [result(g) for g in groups]
    found = [pair for members in by_benchmark(groups).values() for pair in pairs(members)]
    named = [("matrix", matrix_table(results)), ("results", result_table(results))]
    named += [("pairs", pair_table(found))] if found else []
    for at, members in enumerate(by_benchmark(groups).values(), 1):
        budgets = equal_compute(members)
        named += [(f"compute{at}", budget_table(budgets, members))] if budgets else []
    return [(label, table) for label, table in named if table is not None]


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
