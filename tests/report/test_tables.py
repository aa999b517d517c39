"""Numbers as text, and tables for a README, a spreadsheet and a paper."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
from helpers.report_folders import write_run

from metarun.report import write_report
from metarun.report.compare.groups import group_runs
from metarun.report.compare.results import summarize
from metarun.report.read.runs import read_run
from metarun.report.tables.comparison import comparison_tables
from metarun.report.tables.table import Table, escape_latex, to_csv, to_latex, to_markdown
from metarun.storage.text import duration, format_metric, number, shorten

EXAMPLE = Table("A | b", ("name", "mean"), (("x_1 <b>", "-1 ± 2"), ("50 %", "3")), "note", strong=frozenset({(0, 1)}))


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (format_metric("accuracy", 0.90153, 0.005575), "90.15 ± 0.56 %"),
        (format_metric("accuracy", 0.90153, unit=False), "90.15"),
        (format_metric("mse", 0.116924, 0.016282), "0.1169 ± 0.0163"),
        (format_metric("mse", 1.2e-7, None), "1.20e-07"),
        (format_metric("mse", 3e9), "3.00e+09"),
        (format_metric("mse", 0.0, 0.0), "0.0000 ± 0.0000"),
        (format_metric("mse", math.nan, 1.0), "\N{EN DASH}"),
        (format_metric("mse", None), "\N{EN DASH}"),
        (number(48000), "48,000"),
        (number(0.000123456), "0.0001235"),
        (number(math.inf), "\N{EN DASH}"),
        (number(True), "True"),
        (number("text"), "text"),
        (duration(8.25), "8.2 s"),
        (duration(871), "14 min 31 s"),
        (duration(7260), "2 h 1 min"),
        (duration(59.99), "60.0 s"),
        (duration(None), "\N{EN DASH}"),
        (shorten("x" * 50, 10), "xxxxxxxxx…"),
        (shorten("a\nb"), "a\\nb"),
    ],
)
def test_numbers_and_names_as_they_are_read(shown: str, expected: str) -> None:
    assert shown == expected


def test_markdown_holds_no_html_and_no_stray_marks() -> None:
    assert to_markdown(EXAMPLE).splitlines() == [
        "### A \\| b",
        "",
        "| name | mean |",
        "| :-- | --: |",
        "| x\\_1 &lt;b&gt; | **-1 ± 2** |",
        "| 50 % | 3 |",
        "",
        "note",
    ]


def test_latex_is_escaped_and_ruled_by_booktabs() -> None:
    text = to_latex(EXAMPLE, "label")
    assert r"\begin{tabular}{lr}" in text
    assert r"x\_1 \textless{}b\textgreater{} & \textbf{$-$1 $\pm$ 2} \\" in text
    assert r"50 \% & 3 \\" in text
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & c%", r"a\_b \& c\%"),
        ("$x^2$ {~}", r"\$x\textasciicircum{}2\$ \{\textasciitilde{}\}"),
        ("\\input{x}", r"\textbackslash{}input\{x\}"),
        ("5-way -7.5 1e-05", "5-way $-$7.5 1e-05"),
        ("two\nlines", "two lines"),
    ],
)
def test_every_sign_that_latex_reads_is_escaped(text: str, expected: str) -> None:
    assert escape_latex(text) == expected


def test_a_csv_file_is_read_back_as_it_was() -> None:
    table = Table("t", ("a", "b"), (('comma, "quote"', "line\nbreak"), ("", "1.5")))
    assert list(csv.reader(io.StringIO(to_csv(table)))) == [list(table.columns), *map(list, table.rows)]


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


def test_algorithms_and_benchmarks_cross_in_a_table_of_their_own(tmp_path: Path) -> None:
    images = {"data": "omniglot", "kind": "classification", "ways": 5, "shots": 1, "metric": "accuracy", "mean": 0.9}
    settings = {"choices.data": "omniglot", "data.ways": 5, "data.shots": 1}
    runs = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", {"algo": "protonet"} | images, settings),
        write_run(tmp_path / "c", {"mean": 0.8} | images | {"mean": 0.8}, settings),
    ]
    text = write_report(runs, tmp_path / "report.md", "md").read_text(encoding="utf-8")
    rows = [line for line in text.split("###")[1].splitlines() if line.startswith("|")]
    assert rows[0].split(" | ")[0] == "| algorithm"
    assert "omniglot 5-way 1-shot" in rows[0]
    assert rows[2] == "| maml | 0.5000 ± 0.1000 | 80.00 ± 10.00 % |"
    assert rows[3] == "| protonet | \N{EN DASH} | **90.00 ± 10.00 %** |"


def test_learners_of_distributions_and_of_values_stand_in_one_table(tmp_path: Path) -> None:
    """Those that were tested on the same episodes, with the best possible; a run on others has no place in it."""
    beside = {"mse": {"mean": 0.25, "ci95": 0.01}}
    likely = {"metric": "log_likelihood", "beside": beside, "oracle": {"mse": {"mean": 0.125, "ci95": 0.01}}}
    write_run(tmp_path / "cnp", likely | {"algo": "cnp"}, {"choices.algo": "cnp"})
    write_run(tmp_path / "maml", {"mean": 0.5, "ci95": 0.02})
    write_run(tmp_path / "other", {"episodes_sha256": "ffff"}, {"choices.algo": "reptile"})
    runs = [read_run(tmp_path / name) for name in ("cnp", "maml", "other")]
    (shared,) = [
        t
        for t in comparison_tables([summarize(g) for g in group_runs(runs)])
        if t.title.startswith("All metrics, on the same test tasks")
    ]
    assert [row[0] for row in shared.rows] == ["cnp", "maml", "best possible"]
    at = shared.columns.index("MSE of the mean")
    assert [row[at] for row in shared.rows] == ["0.2500 ± 0.0100", "0.5000 ± 0.0200", "0.1250 ± 0.0100"]


def test_runs_of_which_none_has_a_figure_give_tables_without_rows(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "data", config={"job": "data"})
    for format in ("md", "csv", "latex"):
        assert write_report([folder], tmp_path / f"out.{format}", format).exists()
