"""The files of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from metarun.storage.run_folder import RunFolder

LINES: dict[str, Callable[[], str]] = {
    "a text for a number": lambda: '{"kind": "train", "step": 1, "loss": "x"}',
    "a step before the first": lambda: '{"kind": "train", "step": -1}',
    "true for a step": lambda: '{"kind": "train", "step": true}',
    "another kind": lambda: '{"kind": "x", "step": 1}',
    "a table of tables": lambda: '{"kind": "train", "step": 1, "loss": {"a": {"b": 1}}}',
    "a list": lambda: "[1]",
    "many brackets": lambda: 100_000 * "[",
    "no UTF-8": lambda: "\udc80",
}


@pytest.mark.parametrize("line", LINES)
def test_a_resumed_run_keeps_records_alone(tmp_path: Path, line: str) -> None:
    whole = '{"kind": "train", "step": 1, "loss": 0.5, "by_step": [1, null]}\n'
    text = f"{whole}{LINES[line]()}\n"
    (tmp_path / "metrics.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    RunFolder(tmp_path).drop_after(5)
    assert (tmp_path / "metrics.jsonl").read_text() == whole


def test_a_whole_number_that_no_float_can_hold_makes_a_line_damaged(tmp_path: Path) -> None:
    line = '{"kind": "train", "step": 1, "loss": ' + "9" * 400 + "}\n"
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 0, "loss": 1.5}\n' + line)
    assert [record["step"] for record in RunFolder(tmp_path).read_records()] == [0]
