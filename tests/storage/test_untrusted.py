"""Reading run folders that somebody else may have made."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.report_folders import write_run

from metarun.errors import UserError
from metarun.storage import untrusted
from metarun.storage.run_folder import RunFolder


def test_links_inside_of_a_run_folder_and_to_it_are_followed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "latest.json").symlink_to("summary.json")
    (tmp_path / "alias").symlink_to(folder)
    assert RunFolder(tmp_path / "alias").read_config()["job"] == "train"


def test_a_folder_of_more_files_than_a_run_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "MOST_ENTRIES", 3)
    with pytest.raises(UserError, match="has more than 3 files"):
        RunFolder(write_run(tmp_path / "run")).read_config()
