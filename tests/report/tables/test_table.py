"""A table as Markdown, csv, LaTeX and plain text."""

from __future__ import annotations

import csv
import io

import pytest

from metarun.report.tables.table import Table, escape_latex, to_csv, to_latex, to_markdown, to_text

EXAMPLE = Table("A | b", ("name", "mean"), (("x_1 <b>", "-1 ± 2"), ("50 %", "3")), "note", strong=frozenset({(0, 1)}))


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


def test_numbers_of_a_text_are_never_cut() -> None:
    table = Table("t", ("a long heading", "figure"), (("a very long word", "123456"),))
    assert to_text(table, 20) == ["…ong heading  figure", "─" * 20, "a very long…  123456"]
    assert to_text(table, 5) == ["…ading  figure", "─" * 14, "a ver…  123456"]
    assert to_text(Table("t", ("algo.inner_lr",), (("0.123",),), left=()), 5)[0] == "…er_lr"
