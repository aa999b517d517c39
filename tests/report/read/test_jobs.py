"""The jobs of a sweep, and the command that runs one again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from helpers.sweep_folders import write_job

from metarun.report.read.jobs import list_jobs, rerun_command
from metarun.report.read.runs import read_run


def test_a_command_is_quoted_and_has_what_a_single_run_needs(tmp_path: Path) -> None:
    words = ["reg=[l1,l2]", "data.root=/a b/$c", "+x='q'"]
    folder = write_job(tmp_path, 0, *words, "sweep.jobs=2", "hydra.searchpath=[file:///s]")
    sources = [{"path": "/my conf", "schema": "file", "provider": "command-line"}, {"path": "x", "provider": "main"}]
    stored = {"hydra": {"runtime": {"config_sources": sources}}}
    (folder / ".hydra" / "hydra.yaml").write_text(json.dumps(stored))
    (only,) = list_jobs([read_run(folder)])
    split = shlex.split(rerun_command(only))
    assert split == ["metarun", "--config-dir", "/my conf", *words, "hydra.searchpath=[file:///s]"]
