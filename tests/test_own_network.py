"""The example of docs/own_network.md runs as it stands there, on small images."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import ROOT, metarun

PAGE = (ROOT / "docs/own_network.md").read_text(encoding="utf-8")
TINY = ["train.steps=3", "train.tasks=2", "train.eval_every=3", "val.tasks=2", "test.tasks=2", "report=false"]


def block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```\w*\n(.*?)```", PAGE, flags=re.DOTALL)
    assert found, name
    return found[1]


@pytest.fixture
def images(root: Path) -> list[str]:
    """In place of Omniglot."""
    sizes = ["data.image_size=28", "data.channels=1", "data.ways=2", "data.queries=1", "data.test_queries=1"]
    return ["data=folder", f"data.root={root}", *sizes]


def test_the_command_trains(images: list[str], tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(block("file: nets.py"), encoding="utf-8")
    _, _, _, *typed = shlex.split(block("command: protonet"))
    assert "data=omniglot" in typed
    kept = [word for word in typed if word not in ("data=omniglot", "train.steps=300")]
    done = metarun(*kept, *images, *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "completed: 3 steps" in done.stdout


def test_the_python_example_trains(images: list[str], tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(block("file: nets.py"), encoding="utf-8")
    code = block("python: run").replace("outputs=5", "outputs=2")
    code = code.replace('["data=omniglot", "algo=anil", "train.steps=300"]', repr(["algo=anil", *images, *TINY]))
    assert "omniglot" not in code
    variables = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs/own/summary.json").is_file()
