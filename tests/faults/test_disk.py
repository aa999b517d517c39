"""A disk that is full, a folder that is gone."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest
from helpers.runs import ENDLESS, here, started, wait_for_lines

import metarun
from metarun.storage import atomic
from metarun.training import checkpoint

KILOBYTE = 1024


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kilobytes", "named"), [pytest.param(16, "checkpoints/best.pt", marks=pytest.mark.long), (40, "metrics.jsonl")]
)
def test_no_file_may_grow_further(kilobytes: int, named: str, ended: Path, tmp_path: Path) -> None:
    """A limit on files' sizes, which a full disk is like: 28 kB of a checkpoint do not fit, or a record does not."""
    limit = (kilobytes * KILOBYTE, kilobytes * KILOBYTE)
    process = started(
        ENDLESS, "train.log_every=1", f"hydra.run.dir={tmp_path}/run", cwd=tmp_path,
        prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 2
    assert errors.startswith(f"metarun: {tmp_path}/run/{named}: cannot be written (File too large); the run stopped at")
    assert errors.count("\n") == 1
    for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines():
        json.loads(line)
    assert not list((tmp_path / "run").rglob("*.tmp"))
    if named == "metrics.jsonl":
        assert f"the last checkpoint is {tmp_path}/run/checkpoints/last.pt" in errors
        assert checkpoint.load(tmp_path / "run/checkpoints/last.pt")["step"] > 0


@pytest.mark.slow
def test_a_folder_deleted_under_a_run_stops_it(tmp_path: Path) -> None:
    process = started(ENDLESS, f"hydra.run.dir={tmp_path}/run", cwd=tmp_path)
    wait_for_lines(tmp_path / "run/metrics.jsonl", 10, process)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.count("\n") == 1
    assert "cannot be written (" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["checkpoints/last.pt", "checkpoints/best.pt", "summary.json", "test.json"])
def test_a_write_that_fails_leaves_what_was_there(
    name: str, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The n-th write of a file fails; the run then goes on from what it has."""
    replace, seen = atomic.replace, []

    def failing(path: Path, content: bytes, predecessor: Path | None = None) -> None:
        seen.append(path.name)
        if path.name == Path(name).name and seen.count(path.name) == (2 if name.endswith("last.pt") else 1):
            with atomic.name_file_in_errors(path):
                raise OSError(28, "No space left on device")
        replace(path, content, predecessor)

    with monkeypatch.context() as patched:
        patched.setattr(atomic, "replace", failing)
        with pytest.raises(metarun.UserError, match=f"{name}: cannot be written .No space left on device."):
            here(tmp_path / "cut")
    here(tmp_path / "cut", resume=True)
    assert (tmp_path / "cut/metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
