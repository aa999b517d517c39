"""Files that are written whole."""

from __future__ import annotations

from io import FileIO
from pathlib import Path

import pytest

import metarun
from metarun.storage import atomic


class Filling(FileIO):
    """A file on a disk that has room for `room` bytes more."""

    room = 7

    def write(self, line: bytes) -> int:  # type: ignore[override]
        if not self.room:
            raise OSError(28, "No space left on device")
        written = super().write(line[: self.room])
        self.room -= written
        return written


def test_half_a_record_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"whole\n")
    with Filling(path, "a") as file, pytest.raises(metarun.UserError, match="No space left on device"):
        atomic.append(file, path, b"more than fits\n", 6)
    assert path.read_bytes() == b"whole\n"
