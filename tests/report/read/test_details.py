"""details.csv as counts: by class, by task, by picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarun.report.read.details import NO_DETAILS, read_details

LINES = """task,query,picture,class,predicted,correct
0,0,a/1.png,a,b,0
0,1,a/2.png,a,a,1
0,2,b/1.png,b,b,1
1,0,a/1.png,a,a,1
1,1,c/1.png,c,a,0
1,2,a/1.png,a,c,0
"""


def test_queries_are_counted_by_class_by_task_and_by_picture(tmp_path: Path) -> None:
    (tmp_path / "details.csv").write_text(LINES)
    details = read_details(tmp_path / "details.csv")
    pairs = {("a", "a"): 2, ("a", "b"): 1, ("a", "c"): 1, ("b", "b"): 1, ("c", "a"): 1}
    assert details.confusion == pairs
    assert details.row == "picture"
    assert details.rows["a/1.png", "a"] == {"b": 1, "a": 1, "c": 1}
    together = {(one, other): details.count_together(one, other) for one in "abc" for other in "abc"}
    counts = {"ab": 2, "ac": 2, "ba": 1, "ca": 1, "bc": 0, "cb": 0, "aa": 4, "bb": 1, "cc": 1}
    assert together == {tuple(pair): count for pair, count in counts.items()}
    assert details.count_together("a", "other") == details.count_together("other", "a") == 0


def test_rows_without_names_and_tasks_are_counted_too(tmp_path: Path) -> None:
    """As earlier versions wrote them, or another program."""
    (tmp_path / "details.csv").write_text("class,predicted\na,b\na,a\n")
    details = read_details(tmp_path / "details.csv")
    assert (details.row, details.rows) == ("", {})
    assert details.confusion == {("a", "b"): 1, ("a", "a"): 1}


@pytest.mark.parametrize("content", [b"", b"task,x0,y0\n0,1,2\n", b"\xff\xfe", b'class,predicted\n"a,b\n'])
def test_what_has_no_classes_has_no_details(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "details.csv").write_bytes(content)
    found = read_details(tmp_path / "details.csv")
    assert found == NO_DETAILS or content.startswith(b"class")
    assert read_details(tmp_path / "none.csv") == NO_DETAILS
