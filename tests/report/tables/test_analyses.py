"""The rows of an analysis in words."""

from __future__ import annotations

from pathlib import Path

from metarun.report.read.files import Analysis
from metarun.report.tables.run import analysis_tables, name_column


def test_names_and_values_that_a_program_wrote_are_words() -> None:
    named = [name_column(n) for n in ("after_5", "half_1", "inner_lr", "novel_measure", "after_all")]
    assert named == ["after 5 steps", "± after 1 step (95 %)", "inner rate", "novel measure", "after all"]
    rows = (("None", "2.51e+13", "True"), ("", "0.123456789", "maml"))
    analysis = Analysis("a", Path("a"), ("prox", "after_5", "note"), rows, 0, {"summary": {"half_1": 0.5}}, ())
    facts, table = analysis_tables(analysis)
    assert facts.rows == (("± after 1 step (95 %)", "0.5"),)
    assert table.columns == ("prox (lambda)", "after 5 steps", "note")
    assert table.rows == (("\N{EN DASH}", "2.51e+13", "yes"), ("\N{EN DASH}", "0.12346", "maml"))


def test_tables_that_an_analysis_made_come_first_and_damaged_ones_not_at_all() -> None:
    made = {"title": "Runs", "columns": ["run", "cub"], "rows": [["a", "1 ± 2"], ["b"], 3], "note": "changed"}
    damaged = ({"columns": ["run"]}, {"columns": 3, "rows": [["a"]]}, {"columns": [], "rows": [[]]}, {}, "x")
    results = {"summary": {"tables": [made, *damaged], "tasks": 3}}
    found, facts = analysis_tables(Analysis("a", Path("a"), (), (), 0, results, ()))
    assert (found.title, found.columns, found.rows) == ("Runs", ("run", "cub"), (("a", "1 ± 2"),))
    assert facts.title == "Summary"
