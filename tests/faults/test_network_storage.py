"""Run folders on network file systems: locks that do not hold, files that others replace, clocks that differ, errors
that come late. The faults are injected into the calls of the operating system."""

from __future__ import annotations

import builtins
import errno
import os
import shutil
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from helpers.colours import class_folders
from helpers.runs import TINY, here

import metarun
from metarun.data.files import open_files
from metarun.errors import WriteError
from metarun.jobs.sweep.overview import Counts, JobState, estimate_seconds_left
from metarun.report.write import write_report
from metarun.storage import atomic, cache_entries, locks, sweep_records
from metarun.storage.loggers import jsonl
from metarun.storage.run_folder import RunFolder
from metarun.storage.sweep_records import JobRecord, write_job
from metarun.training import checkpoint

STALE = ".nfs00000000000f42ab0000001c"
"""What is left in place of a file that was deleted while a process of the same machine had it open."""


def error_of(number: int, path: object = None) -> OSError:
    return OSError(number, os.strerror(number), *([str(path)] if path else []))


def refuse_with(number: int) -> Callable[..., None]:
    def refuse(*_: Any) -> None:
        raise error_of(number)

    return refuse


class Meanwhile:
    """A callback that does something once, after an outer step."""

    def __init__(self, step: int, action: Callable[[], Any]) -> None:
        self.step, self.action = step, action

    def on_step(self, state: Any) -> None:
        if state.step == self.step:
            self.action()


def halfway(folder: Path) -> Path:
    """A run of 10 of its 20 steps."""
    here(folder, "train.steps=10")
    return folder


def has_bits_of(folder: Path, ended: Path) -> bool:
    names = ("metrics.jsonl", "test.json")
    return all((folder / name).read_bytes() == (ended / name).read_bytes() for name in names)


LOCKS = {
    "held by both": lambda *_: None,
    "ENOLCK": refuse_with(errno.ENOLCK),
    "EOPNOTSUPP": refuse_with(errno.EOPNOTSUPP),
}


@pytest.mark.parametrize("step", [11, 12], ids=["appends", "replaces"])
@pytest.mark.parametrize("flock", LOCKS.values(), ids=LOCKS)
def test_where_locks_do_not_hold_one_of_two_writers_stops(
    flock: Any, step: int, ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one resumes the run while the first still trains: it appends to the records, or replaces them if some
    are later than the checkpoint of step 10."""
    monkeypatch.setattr("fcntl.flock", flock)
    folder = tmp_path / "run"
    second = Meanwhile(step, lambda: here(folder, resume=True))
    with pytest.raises(metarun.UserError, match=r"metrics.jsonl: another process writes there too; the run stopped"):
        metarun.run(metarun.compose(TINY), folder, callbacks=[second])
    assert has_bits_of(folder, ended)
    assert RunFolder(folder).has_ended()
    assert checkpoint.load(folder / "checkpoints/last.pt")["step"] == 20


def test_a_file_that_another_machine_replaces_is_opened_again(
    ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, seen = halfway(tmp_path / "run"), set()
    really, load = os.open, checkpoint.load_tensors

    def fail_once(path: Any) -> None:
        if Path(path).is_relative_to(folder) and str(path) not in seen:
            seen.add(str(path))
            raise error_of(errno.ESTALE)

    def stale_open(path: Any, flags: int, *more: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) == 0:
            fail_once(path)
        return really(path, flags, *more)

    def stale_load(path: Path) -> Any:
        fail_once(path)
        return load(path)

    monkeypatch.setattr(os, "open", stale_open)
    monkeypatch.setattr(checkpoint, "load_tensors", stale_load)
    capsys.readouterr()
    here(folder, resume=True)
    assert {Path(path).name for path in seen} >= {"metrics.jsonl", "summary.json", "last.pt"}
    assert "damaged" not in capsys.readouterr().err
    assert has_bits_of(folder, ended)


def test_a_file_that_stays_stale_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, really = halfway(tmp_path / "run"), os.stat
    last = str(folder / "checkpoints/last.pt")

    def stale_stat(path: Any, *more: Any, **named: Any) -> Any:
        if str(path) == last:
            raise error_of(errno.ESTALE, path)
        return really(path, *more, **named)

    before = (folder / "metrics.jsonl").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", stale_stat)
        with pytest.raises(metarun.UserError, match=r"last\.pt: Stale file handle"):
            here(folder, resume=True)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_records_are_on_the_disk_before_the_checkpoint_that_follows_them(
    ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another machine sees after a crash of this one: each checkpoint as it was renamed, and of the records what
    was forced to the disk by then."""
    folder, seen = tmp_path / "run", []
    fsync, rename = os.fsync, os.replace
    forced = {"metrics.jsonl": 0}

    def spy_fsync(number: int) -> None:
        fsync(number)
        path = folder / "metrics.jsonl"
        if path.exists() and os.path.samestat(os.fstat(number), path.stat()):
            forced["metrics.jsonl"] = path.stat().st_size

    def spy_rename(source: Any, target: Any) -> None:
        rename(source, target)
        if Path(target).name == "last.pt":
            copy = Path(shutil.copytree(folder, tmp_path / f"crashed{len(seen)}"))
            os.truncate(copy / "metrics.jsonl", forced["metrics.jsonl"])
            (copy / "test.json").unlink(missing_ok=True)
            seen.append(copy)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", spy_fsync)
        patched.setattr(os, "replace", spy_rename)
        here(folder)
    assert [checkpoint.load(copy / "checkpoints/last.pt")["step"] for copy in seen] == [5, 10, 15, 20]
    for copy in seen:
        here(copy, resume=True)
        assert has_bits_of(copy, ended)


@pytest.mark.parametrize("renamed", ["last.pt", "summary.json"])
def test_a_rename_that_is_seen_late_changes_no_bit(renamed: str, ended: Path, tmp_path: Path) -> None:
    """The machine that resumes still sees the file before the last one, or none."""
    folder = halfway(tmp_path / "run")
    if renamed == "last.pt":
        shutil.copy(folder / "checkpoints/last.pt.previous", folder / "checkpoints/last.pt")
        assert checkpoint.load(folder / "checkpoints/last.pt")["step"] == 5
    else:
        (folder / renamed).unlink()
    here(folder, resume=True)
    assert has_bits_of(folder, ended)


@pytest.mark.parametrize("hours", [5, -5])
def test_clocks_that_differ_by_hours_change_no_bit(
    hours: int, ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time stamps are those of the server, `time.time` is this machine's."""
    folder = halfway(tmp_path / "run")
    then = time.time() + 3600 * hours
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (then, then))
    monkeypatch.setattr(time, "time", lambda now=time.time: now() - 3600 * hours)
    here(folder, resume=True)
    assert has_bits_of(folder, ended)
    running = JobState(folder, JobRecord(status="running", started=then))
    done = JobState(folder, JobRecord(status="completed", objective=0.1, seconds=60.0))
    left = estimate_seconds_left([done, running], Counts(1, 0, 0, 1, 0), 1, time.time())
    assert left is not None
    assert 0 <= left <= 60


def test_what_is_left_of_deleted_files_is_passed_over(ended: Path, tmp_path: Path) -> None:
    folder = halfway(tmp_path / "run")
    for place in (folder, folder / "checkpoints"):
        (place / STALE).write_bytes(b"\x80 no text")
    here(folder, resume=True)
    assert has_bits_of(folder, ended)
    assert write_report([folder]).exists()
    root = class_folders(tmp_path / "images", ["a", "b"], each=2)
    before = open_files(root).names
    (root / "a" / STALE).write_bytes(b"no image")
    assert open_files(root).names == before
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / STALE).write_bytes(b"no entry")
    assert cache_entries.list_entries(cache)[0] == []
    assert list(cache_entries.shrink(cache, 0)) == []


def test_a_lock_file_that_stays_while_it_is_open_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: path.rename(path.with_name(STALE)))
    with pytest.raises(KeyError, match="the reason"), locks.lock_run_folder(tmp_path / "run"):
        raise KeyError("the reason")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [STALE]


class Late(FileIO):
    """A file whose writes fail no earlier than at close."""

    number = errno.EDQUOT

    def close(self) -> None:
        was_open = not self.closed
        super().close()
        if was_open:
            raise error_of(self.number)


@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT], ids=["EIO", "EDQUOT"])
def test_a_checkpoint_whose_close_fails_leaves_the_one_before(
    number: int, ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = tmp_path / "run", []

    def late_open(path: Any, mode: str) -> Any:
        seen.append(Path(path).name)
        late = seen.count("last.pt.tmp") == 2 and seen[-1] == "last.pt.tmp"
        return Late(path, "w") if late else builtins.open(path, mode)

    monkeypatch.setattr(Late, "number", number)
    with monkeypatch.context() as patched:
        patched.setattr(atomic, "open", late_open, raising=False)
        with pytest.raises(metarun.UserError, match=rf"last\.pt: cannot be written .{os.strerror(number)}.*step 10"):
            here(folder)
    assert checkpoint.load(folder / "checkpoints/last.pt")["step"] == 5
    assert not list(folder.rglob("*.tmp"))
    here(folder, resume=True)
    assert has_bits_of(folder, ended)


def test_records_that_do_not_reach_the_disk_stop_the_run_before_its_checkpoint(
    ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, fsync, forced = tmp_path / "run", os.fsync, []

    def late_fsync(number: int) -> None:
        fsync(number)
        path = folder / "metrics.jsonl"
        if path.exists() and os.path.samestat(os.fstat(number), path.stat()):
            forced.append(number)
            if len(forced) == 2:
                raise error_of(errno.EDQUOT)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", late_fsync)
        with pytest.raises(
            metarun.UserError, match=r"metrics\.jsonl: cannot be written .*; the run stopped at step 10"
        ):
            here(folder)
    assert checkpoint.load(folder / "checkpoints/last.pt")["step"] == 5
    assert RunFolder(folder).read_summary()["status"] == "failed"
    here(folder, resume=True)
    assert has_bits_of(folder, ended)


def test_records_whose_close_fails_are_named_and_the_rest_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []

    class Watching:
        def on_end(self, summary: dict[str, Any]) -> None:
            ends.append(summary["status"])

    monkeypatch.setattr(jsonl, "FileIO", Late)
    with pytest.raises(metarun.UserError, match=r"metrics\.jsonl: cannot be written .Disk quota exceeded."):
        metarun.run(metarun.compose(TINY), tmp_path / "run", callbacks=[Watching()])
    assert ends == ["completed"]


def test_the_close_of_a_lock_file_costs_no_run(ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "FileIO", Late)
    here(tmp_path / "run")
    assert has_bits_of(tmp_path / "run", ended)


def test_a_record_of_a_job_whose_close_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_job(tmp_path, JobRecord(status="waiting"))
    monkeypatch.setattr(Path, "write_text", lambda path, *_, **__: Late(path, "w").close())
    with pytest.raises(WriteError, match=r"job\.json: cannot be written .Disk quota exceeded."):
        write_job(tmp_path, JobRecord(status="running"))
    assert sweep_records.read_job(tmp_path).status == "waiting"
    assert [path.name for path in tmp_path.iterdir()] == ["job.json"]
