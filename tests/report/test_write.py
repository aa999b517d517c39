"""Reports of tables: csv, Markdown, LaTeX."""

from __future__ import annotations

import csv
from pathlib import Path

from helpers.report_folders import write_run

from metarun.report.write import write_report


def test_the_csv_report_has_numbers_in_full(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", {"mean": 0.1234567891}), write_run(tmp_path / "b", {"algo": "fo, maml"})]
    written = write_report(runs, tmp_path / "results.csv", "csv")
    rows = list(csv.DictReader(written.open(encoding="utf-8")))
    assert [(r["algorithm"], float(r["mean"]), r["interval_over"]) for r in rows] == [
        ("maml", 0.1234567891, "tasks"),
        ("fo, maml", 0.5, "tasks"),
    ]
    assert rows[0]["iqm"] == ""
    (pair,) = csv.DictReader((tmp_path / "results-pairs.csv").open(encoding="utf-8"))
    assert (pair["a"], pair["b"], float(pair["difference"]), pair["not_comparable"]) == ("maml", "fo, maml", 0.0, "")


def test_markdown_and_latex_reports_have_results_pairs_and_what_is_missing(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", {"algo": "x_y", "mean": 0.4, "status": "running"})]
    text = write_report(runs, tmp_path / "report.md", "md").read_text(encoding="utf-8")
    assert "| maml | 0.5000 ± 0.1000 | tasks, 1 seed |" in text
    assert "### Paired differences: sinusoid 10-shot, MSE" in text
    assert "* b: The run has not ended" in text
    text = write_report(runs, tmp_path / "report.tex", "latex").read_text(encoding="utf-8")
    assert r"x\_y & \textbf{0.4000 $\pm$ 0.1000}" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 3


def test_runs_of_which_none_has_a_figure_give_tables_without_rows(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "data", config={"job": "data"})
    for format in ("md", "csv", "latex"):
        assert write_report([folder], tmp_path / f"out.{format}", format).exists()
