"""A sample of kills.py; its docstring says what a case is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kills.py")


@pytest.mark.slow
@pytest.mark.parametrize(("cases", "seed"), [(1, 3), pytest.param(36, 4, marks=pytest.mark.long)])
def test_a_run_killed_anywhere_ends_with_the_same_bits(cases: int, seed: int) -> None:
    done = subprocess.run([sys.executable, SCRIPT, str(cases), str(seed)], capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'"cases": {cases}, "wrong": 0' in done.stdout
