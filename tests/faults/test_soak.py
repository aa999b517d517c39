"""A short soak.py; its docstring says what it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("soak.py")


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks up processes in /proc")
@pytest.mark.parametrize(("jobs", "seed"), [(12, 0)])
def test_a_sweep_whose_processes_are_killed_ends_with_the_table_of_an_undisturbed_one(jobs: int, seed: int) -> None:
    done = subprocess.run([sys.executable, SCRIPT, str(jobs), str(seed)], capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'"jobs": {jobs}, "seed": {seed}, "wrong": 0' in done.stdout
