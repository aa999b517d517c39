"""The records of sweeps and their jobs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from metarun.report.read.jobs import find_jobs
from metarun.storage.sweep_records import JobRecord, SweepRecord, jobs_of, read_job, read_sweep, write_job


def test_records_are_read_back_and_damaged_ones_are_empty(tmp_path: Path) -> None:
    record = JobRecord("k", 3, ["a=b"], "completed", 0.5, visits={"v": False})
    write_job(tmp_path, record)
    assert read_job(tmp_path) == record
    (tmp_path / "job.json").write_text('{"key": "k"')
    assert read_job(tmp_path) == JobRecord()
    (tmp_path / "job.json").write_text("[]")
    assert read_job(tmp_path) == JobRecord()
    assert read_sweep(tmp_path) == SweepRecord()


def test_jobs_of_another_sitting_are_not_counted(tmp_path: Path) -> None:
    for number, visit in enumerate(("now", "before", "now")):
        folder = tmp_path / str(2 - number)
        folder.mkdir()
        write_job(folder, JobRecord(number=number, visits={visit: False}))
    assert [r.number for _, r in jobs_of(tmp_path, "now")] == [0, 2]


@pytest.mark.parametrize(
    "stored",
    [
        {"number": "7"},
        {"visits": []},
        {"visits": {"a": 1}},
        {"overrides": "algo=maml"},
        {"overrides": [1]},
        {"seconds": float("nan")},
        {"status": 3},
        {"started": "now"},
        [],
        7,
    ],
)
def test_a_record_of_a_sweep_with_other_types_is_none(tmp_path: Path, stored: object) -> None:
    (tmp_path / "job.json").write_text(json.dumps(stored))
    (tmp_path / "sweep.json").write_text(json.dumps(stored if isinstance(stored, list) else {"command": stored}))
    assert read_job(tmp_path) == JobRecord()
    assert read_sweep(tmp_path) == SweepRecord()
    assert find_jobs(tmp_path)[1] == [tmp_path]


def test_a_record_shows_no_control_characters(tmp_path: Path) -> None:
    record = asdict(
        JobRecord("k", 1, ["a=1\x1b[2J"], "failed", 0.5, "because\x1b]0;x\x07\nof", 1, 2.0, 3.0, {"v": True})
    )
    (tmp_path / "job.json").write_text(json.dumps(record))
    read = read_job(tmp_path)
    assert (read.overrides, read.reason) == (["a=1\\x1b[2J"], "because\\x1b]0;x\\x07 of")
    assert (read.objective, read.visits) == (0.5, {"v": True})
