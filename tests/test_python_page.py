"""The cells of docs/python.md run in order as they stand there, with few steps."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import metarun

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/python.md").read_text(encoding="utf-8").replace("train.steps=2000", "train.steps=20")
SMALL = ', "val.tasks=4", "test.tasks=6", "train.eval_every=10", "device.compile=off", "report=false"]'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, text in re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", PAGE, flags=re.DOTALL):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield tmp_path
    sys.modules.pop("mine", None)


def test_the_cells_run(folder: Path) -> None:
    cells = re.findall(r"<!-- cell -->\n```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(cells) == 5
    names: dict[str, Any] = {}
    for cell in cells:
        small = cell.replace('"train.steps=20"]', '"train.steps=20"' + SMALL).replace("range(200)", "range(3)")
        exec(small.replace("test.tasks=1000", "test.tasks=7"), names)
    assert names["again"].summary["n_tasks"] == 7
    assert names["result"].summary["metric"] == "huber"
    assert len(names["best"].errors) == 2
    assert names["adapted"].predict([0.5]).shape == (1, 1)


def test_the_command_runs(folder: Path) -> None:
    (command,) = re.findall(r"<!-- command -->\n```\n(.*?)\n```", PAGE, flags=re.DOTALL)
    words = [*shlex.split(command)[3:], "val.tasks=4", "test.tasks=6", "device.compile=off", "report=false"]
    done = metarun(*words, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "test huber" in done.stdout
    assert "mae" in done.stdout
