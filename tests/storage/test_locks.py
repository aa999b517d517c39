"""Locks on files: one writer for a run folder, exclusive work, and n at once."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from metarun.errors import UserError
from metarun.storage.locks import file_lock, find_owner, lock_run_folder, lock_slot

FORK = multiprocessing.get_context("fork")


def fail_after_writing(path: Path) -> None:
    path.touch()
    raise ValueError("after the first file")


def hold_until_killed(folder: Path, started: Any) -> None:
    with lock_run_folder(folder), file_lock(folder / "table"), lock_slot(folder / "slots", 1):
        started.set()
        signal.pause()


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)


def test_a_run_folder_has_one_writer_which_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    assert find_owner(folder) is None
    with lock_run_folder(folder):
        name = find_owner(folder)
        assert str(name).startswith(f"process {os.getpid()} on ")
        with pytest.raises(UserError) as caught, lock_run_folder(folder):
            pass
        assert str(caught.value) == f"{folder}: another process writes there ({name}); wait for it or stop it first"
        assert find_owner(folder) == name
    assert find_owner(folder) is None
    with lock_run_folder(folder):
        assert find_owner(folder) == name


def test_locks_are_free_once_their_holder_is_killed(tmp_path: Path) -> None:
    started = FORK.Event()
    process = FORK.Process(target=hold_until_killed, args=(tmp_path, started))
    process.start()
    assert started.wait(60)
    assert find_owner(tmp_path)
    process.kill()
    process.join()
    assert find_owner(tmp_path) is None
    with lock_run_folder(tmp_path), file_lock(tmp_path / "table") as lock, lock_slot(tmp_path / "slots", 1) as slot:
        assert lock is not None
        assert slot == 0


def test_a_refused_job_leaves_no_folder_of_its_own_and_takes_none_away(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for name in ("new", "old"):
        with pytest.raises(ValueError, match="refused"), lock_run_folder(tmp_path / name):
            raise ValueError("refused")
    with pytest.raises(ValueError, match="after the first file"), lock_run_folder(tmp_path / "begun"):
        fail_after_writing(tmp_path / "begun" / "config.yaml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun", "old"]


def test_slots_are_taken_in_order_and_freed(tmp_path: Path) -> None:
    with lock_slot(tmp_path / "s", 2) as first:
        with lock_slot(tmp_path / "s", 2) as second:
            assert (first, second) == (0, 1)
        with lock_slot(tmp_path / "s", 2) as again:
            assert again == 1


def test_a_process_that_inherits_the_descriptor_keeps_the_lock(tmp_path: Path) -> None:
    with file_lock(tmp_path / "job") as lock:
        assert lock is not None
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock], stdout=subprocess.DEVNULL
        )
    with FORK.Pool(1) as pool:
        waiting = pool.apply_async(wait_for_lock, (tmp_path / "job",))
        assert not waiting.ready()
        waiting.wait(0.3)
        assert not waiting.ready()
        child.communicate(b"\n")
        assert waiting.get(60)


def wait_for_lock(path: Path) -> bool:
    with file_lock(path) as lock:
        return lock is not None


@pytest.mark.usefixtures("without_locks")
def test_on_a_file_system_without_locks_nothing_is_refused(tmp_path: Path) -> None:
    with lock_run_folder(tmp_path), lock_run_folder(tmp_path):
        assert find_owner(tmp_path) is None
    with file_lock(tmp_path / "table") as first, file_lock(tmp_path / "table") as second:
        assert (first, second) == (None, None)
    with lock_slot(tmp_path / "slots", 1) as first, lock_slot(tmp_path / "slots", 1) as second:
        assert (first, second) == (0, 0)


def hold(folder: Path, count: int, log: Path) -> None:
    with lock_slot(folder, count):
        with open(log, "a") as file:
            file.write("+\n")
        time.sleep(0.3)
        with open(log, "a") as file:
            file.write("-\n")


def test_no_more_jobs_than_slots_run_at_once(tmp_path: Path) -> None:
    processes = [FORK.Process(target=hold, args=(tmp_path / "s", 2, tmp_path / "log")) for _ in range(5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    running, most = 0, 0
    for line in (tmp_path / "log").read_text().splitlines():
        running += 1 if line == "+" else -1
        most = max(most, running)
    assert most == 2
    assert running == 0
