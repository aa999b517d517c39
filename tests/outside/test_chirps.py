"""A package of somebody else's, installed as pip installs it: its own tests with `metarun.testing`, and its components
on the command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tests/outside/chirps"
TRUST, SETTINGS = "trusted_modules=[chirps]", "hydra.searchpath=[pkg://chirps.conf]"
PARTS = ("algo=ridge", "data=waves", "model=module", "model.target=chirps.gru.WaveGRU", "model.args.width=8")
TINY = ("train.steps=20", "train.tasks=4", "train.eval_every=10", "val.tasks=4", "test.tasks=4", "report=false")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package is installed to."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    done = run("-m", "pip", "install", *options, "--target", str(folder), str(PACKAGE), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def run(*arguments: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python, which finds the checkout of metarun and what is installed in a folder, and not the package's source."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*([path] if path else []), ROOT]))}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_its_own_tests_pass(installed: Path, tmp_path: Path) -> None:
    tests = str(PACKAGE / "tests")
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", tests, tests]
    done = run("-m", "pytest", *options, cwd=tmp_path, path=installed)
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


@pytest.mark.slow
def test_its_components_train_and_are_tested_again(installed: Path, tmp_path: Path) -> None:
    """And a mistake in a setting of theirs is one line."""
    typed = ("-m", "metarun", SETTINGS, TRUST, *PARTS, *TINY)
    done = run(*typed, "hydra.run.dir=trained", cwd=tmp_path, path=installed)
    assert done.returncode == 0, done.stderr
    assert "ridge on waves" in done.stdout
    assert "completed: 20 steps" in done.stdout
    evaluation = ("-m", "metarun", "job=evaluate", "run=trained", TRUST, "hydra.run.dir=tested")
    again = run(*evaluation, cwd=tmp_path, path=installed)
    assert again.returncode == 0, again.stderr
    lines = [re.findall("^test accuracy: .*", out, flags=re.MULTILINE) for out in (done.stdout, again.stdout)]
    assert lines[0] == lines[1] != []
    wrong = run(*typed, "algo.strenght=2", cwd=tmp_path, path=installed)
    assert (wrong.returncode, wrong.stderr) == (2, "metarun: algo.strenght: no such setting, did you mean strength?\n")
