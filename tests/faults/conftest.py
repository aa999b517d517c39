"""What the tests of faults share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.runs import here


@pytest.fixture(scope="session")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that came to its end; not to be written to."""
    folder = tmp_path_factory.mktemp("ended") / "run"
    here(folder)
    return folder


@pytest.fixture
def run(ended: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(ended, tmp_path / "run"))
