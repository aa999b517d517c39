"""The examples of CONTRIBUTING.md run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import metarun

PAGE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"
TINY = ("train.steps=20", "train.tasks=4", "train.eval_every=10", "val.tasks=4", "test.tasks=4", "device.compile=off")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The files of the page, in a folder."""
    files = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(files) == 11
    for name, content in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return tmp_path


def test_the_example_of_an_analysis_measures_and_draws(own: Path) -> None:
    run = ["train.steps=20", "test.tasks=4", "val.tasks=4", "device.compile=off", "report=false"]
    assert metarun(*run, "hydra.run.dir=run", cwd=own).returncode == 0
    asked = ["job=analyze", "run=run", "analysis=shots", "analysis.tasks=4", "trusted_modules=[own]"]
    done = metarun("-cd", "conf", *asked, cwd=own)
    assert done.returncode == 0, done.stderr
    assert "test mse" in done.stdout
    assert (own / "run/analyses/shots/figure.png").exists()


def test_the_checks_of_the_examples_pass(own: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(own), str(PAGE.parent)])}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=own,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


@pytest.mark.parametrize("choice", ["algo=ridge", "reg=spread", "data=lines", "model=deep"])
def test_an_example_trains(choice: str, own: Path) -> None:
    done = metarun("-cd", "conf", choice, "trusted_modules=[own]", *TINY, cwd=own)
    assert done.returncode == 0, done.stderr
    assert "completed: 20 steps" in done.stdout
