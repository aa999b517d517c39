"""What every test runs under."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
from folder_data import FOLDERS
from image_files import as_folder

# Not in the cache of the test at hand, so that what one has compiled serves the next.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), "metarun-tests-compiled")))


VARIANTS = {"anil", "metasgd"}
"""MAML's class with one setting each: of what is tried with every algorithm, `make test` has mamlpp for these two."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tried = getattr(item, "callspec", None)
        if tried and VARIANTS & {str(value) for value in tried.params.values()}:
            item.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The tensors of the tests are tiny: threads cost more than they give, and take from what else runs."""
    torch.set_num_threads(1)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test sees neither the data nor the cache of whoever runs it, nor a proxy."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("METARUN_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A data set of ten classes: train, val, test with class folders."""
    return as_folder(tmp_path / "place", FOLDERS)
