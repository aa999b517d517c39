"""The cells and commands of docs/own_data.md run in order as they stand there, with few steps."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.commands import ROOT, metarun

PAGE = (ROOT / "docs/own_data.md").read_text(encoding="utf-8")
TINY = ["train.steps=3", "train.eval_every=3", "val.tasks=2", "test.tasks=3", "report=false", "device.compile=off"]
NAMES = {
    "python": ["sites.csv", "frame", "arrays", "machines.npz", "waves"],
    "command": ["describe", "table", "windows"],
}


def block(kind: str, name: str) -> str:
    found = re.search(rf"<!-- {kind}: {re.escape(name)} -->\n```\w*\n(.*?)```", PAGE, flags=re.DOTALL)
    assert found, name
    return found[1]


def run_cell(name: str, folder: Path) -> str:
    small = re.sub(r'"train.steps=\d+"', ", ".join(map(repr, TINY)), block("python", name))
    path = os.pathsep.join([str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")])
    variables = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", small], cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_command(name: str, folder: Path) -> str:
    _, _, _, *typed = shlex.split(block("command", name))
    done = metarun(*(word for word in typed if not word.startswith("train.steps")), *TINY, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_block_of_the_page_is_run_here() -> None:
    for kind, names in NAMES.items():
        assert re.findall(rf"<!-- {kind}: (\S+) -->", PAGE) == names


def test_the_table(tmp_path: Path) -> None:
    run_cell("sites.csv", tmp_path)
    shown = [line.strip() for line in run_command("describe", tmp_path).splitlines() if line.strip()]
    page = [line.strip() for line in PAGE.splitlines()]
    assert [line for line in shown if line not in page] == []  # the page has what the command prints
    assert "mae_price" in run_command("table", tmp_path)


def test_the_data_frame(tmp_path: Path) -> None:
    if find_spec("pandas") is None:
        pytest.skip("pandas reads the DataFrame")
    run_cell("sites.csv", tmp_path)
    run_cell("frame", tmp_path)


def test_the_arrays(tmp_path: Path) -> None:
    assert "inputs 16 features z-scored on 18 training classes" in run_cell("arrays", tmp_path)


def test_the_signals(tmp_path: Path) -> None:
    run_cell("machines.npz", tmp_path)
    assert "signals 1x60 z-scored on 24 training classes" in run_command("windows", tmp_path)


def test_the_class(tmp_path: Path) -> None:
    (tmp_path / "waves.py").write_text(block("file", "waves.py"), encoding="utf-8")
    assert "split unknown" in run_cell("waves", tmp_path)
