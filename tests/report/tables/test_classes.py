"""The hardest classes, pairs and pictures of details.csv."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarun.report.read.runs import Run, read_run
from metarun.report.tables.classes import SHOWN, class_table, pair_table, picture_table

QUERIES = [  # task, picture, class, predicted
    *[(0, "1.png", "a", "a"), (0, "2.png", "a", "b"), (0, "3.png", "a", "a"), (0, "4.png", "b", "b")],
    *[(1, "2.png", "a", "b"), (1, "3.png", "a", "a"), (1, "4.png", "b", "a"), (1, "5.png", "b", "b")],
    *[(2, "2.png", "a", "c"), (2, "1.png", "a", "a"), (2, "6.png", "c", "a"), (2, "6.png", "c", "c")],
]


def write(folder: Path, queries: list[tuple[int, str, str, str]]) -> Run:
    (folder / "config.yaml").write_text("algo: {}\ndata: {}\ntrain: {}\n")
    rows = [f"{task},{number},{name},{a},{b}" for number, (task, name, a, b) in enumerate(queries)]
    (folder / "details.csv").write_text("\n".join(["task,query,picture,class,predicted", *rows, ""]))
    return read_run(folder)


def test_each_table_has_what_was_wrong_most_often_first(tmp_path: Path) -> None:
    run = write(tmp_path, QUERIES)
    assert class_table(run).rows == (
        ("c", "50.0 %", "2", "a", "50.0 %"),
        ("a", "57.1 %", "7", "b", "28.6 %"),
        ("b", "66.7 %", "3", "a", "33.3 %"),
    )
    assert pair_table(run).rows == (
        ("a", "b", "2", "5", "40.0 %"),  # of the queries of a in the tasks 0 and 1, which have b
        ("a", "c", "1", "2", "50.0 %"),
        ("b", "a", "1", "3", "33.3 %"),
        ("c", "a", "1", "2", "50.0 %"),
    )
    table = picture_table(run)
    assert table.title == "Hardest pictures"
    assert table.rows == (
        ("2.png", "a", "3", "3", "b (2)"),
        ("4.png", "b", "2", "1", "a (1)"),
        ("6.png", "c", "2", "1", "a (1)"),
    )


@pytest.mark.parametrize("make", [class_table, pair_table, picture_table])
def test_a_long_table_says_how_much_more_there_is(tmp_path: Path, make: object) -> None:
    queries = [(t, f"{t}.png", f"c{t}", "other") for t in range(50)]
    table = make(write(tmp_path, queries))  # type: ignore[operator]
    assert len(table.rows) == SHOWN
    assert f"{SHOWN}" in table.note
    assert "50" in table.note
