"""What every test runs under."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.folder_data import FOLDERS
from helpers.image_files import as_folder
from helpers.runs import here
from hydra._internal.core_plugins.file_config_source import FileConfigSource

# Not in the cache of the test at hand, so that what one has compiled serves the next.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), "metarun-tests-compiled")))


VARIANTS = {"anil", "boil", "metacurvature", "metasgd", "np", "unicorn"}
"""MAML's class with one setting each, and anp's without attention: of what is tried with every algorithm, `make test`
has mamlpp and anp for these."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tried = getattr(item, "callspec", None)
        if tried and VARIANTS & {getattr(value, "algo", str(value)) for value in tried.params.values()}:
            item.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The tensors of the tests are tiny: threads cost more than they give, and take from what else runs."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _settings_read_once() -> Iterator[None]:
    """Hydra reads every YAML file at each composition, a third of its time. Commands in processes of their own still
    do."""
    real, known = FileConfigSource.load_config, {}

    def load_config(source: FileConfigSource, config_path: str) -> Any:
        path = Path(source.path, source._normalize_file_name(config_path))
        key = path, path.stat().st_mtime_ns if path.exists() else None
        if key not in known:
            known[key] = real(source, config_path)
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileConfigSource, "load_config", load_config)
        yield


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test sees neither the data nor the cache of whoever runs it, nor a proxy."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("METARUN_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set of ten classes: train, val, test with class folders."""
    return as_folder(tmp_path / "data", FOLDERS)


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
