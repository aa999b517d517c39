"""The examples of CONTRIBUTING.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.commands import metarun

PAGE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"
TINY = ("train.steps=20", "train.tasks=4", "train.eval_every=10", "val.tasks=4", "test.tasks=4", "device.compile=off")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The files of the page, in a folder."""
    files = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(files) == 8
    for name, content in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("choice", ["algo=ridge", "reg=spread", "data=lines", "model=deep"])
def test_an_example_trains(choice: str, own: Path) -> None:
    done = metarun("-cd", "conf", choice, "trusted_modules=[own]", *TINY, cwd=own)
    assert done.returncode == 0, done.stderr
    assert "completed: 20 steps" in done.stdout
