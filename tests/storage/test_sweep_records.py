"""The records of sweeps and their jobs."""

from __future__ import annotations

from pathlib import Path

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
