"""What a user sees while a sweep goes on: one line for each job that ended, and where the others are."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.text import Text

from metarun.storage.status import SUCCEEDED, WORST
from metarun.storage.sweep_records import JobRecord, SweepRecord, jobs_of
from metarun.storage.text import duration

POLL, SHARE = 0.5, 20  # seconds between two looks, but at least so many times what a look at all jobs takes
SHOWN = 8  # running jobs
TAIL = 4096  # bytes of a record file, enough for its last line


class Job(NamedTuple):
    folder: Path
    record: JobRecord
    skipped: bool  # by this sitting: it was done before


def jobs_seen(folder: Path, visit: str) -> list[Job]:
    """Those that this sitting has come to."""
    return [Job(path, record, record.visits[visit]) for path, record in jobs_of(folder, visit)]


class Counts(NamedTuple):
    """Jobs of this sitting."""

    succeeded: int
    skipped: int  # of all that ended, those that were done before
    lost: int  # diverged, failed, interrupted
    running: int
    waiting: int

    @property
    def ended(self) -> int:
        return self.succeeded + self.lost


class Overview:
    """Follows the jobs' records in a thread of its own, from `start` to `stop`."""

    def __init__(self, folder: Path, sweep: SweepRecord, console: Console | None = None) -> None:
        self.folder, self.sweep = folder, sweep
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.told: set[Path] = set()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True, name="overview")
        self.live = Live(console=self.console, refresh_per_second=2) if self.console.is_terminal else None

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.over.set()
        self.thread.join()

    def _follow(self) -> None:
        if self.live:
            self.live.start()
        pause = POLL
        while not self.over.wait(pause):
            start = time.monotonic()
            self._look()
            pause = max(POLL, SHARE * (time.monotonic() - start))
        self._look()
        if self.live:
            self.live.update(Text(""))
            self.live.stop()

    def _look(self) -> None:
        jobs = jobs_seen(self.folder, self.sweep.visit)
        for job in jobs:
            if job.folder not in self.told and _ended(job.record):
                self.told.add(job.folder)
                self.console.print(Text(line_of(job, len(self.told), self.sweep.total)))
        if self.live:
            self.live.update(Text("\n".join(standing(jobs, self.sweep))))


def line_of(job: Job, number: int, total: int | None) -> str:
    """What a job ended in: `[ 3/27] completed  val_error 0.123  12.1 s  maml-seed1-3f2a9c1b`."""
    record = job.record
    known = record.status in SUCCEEDED and _error(record) < WORST
    found = f"val_error {_error(record):.4g}" if known else ""
    state = "skipped" if job.skipped else record.status
    time_taken = "" if job.skipped else duration(record.seconds)
    why = f"  {record.reason}" if record.reason else ""
    of = f"{number:>{len(str(total))}}/{total}" if total else str(number)
    edited = f"  (settings edited since the sweep began: {', '.join(record.changed)})" if record.changed else ""
    return f"[{of}] {state:<10} {found:<19} {time_taken:>10}  {job.folder.name}{why}{edited}"


def standing(jobs: Sequence[Job], sweep: SweepRecord) -> list[str]:
    """How many wait, run, are done; the best so far; the time left; the running jobs with their step."""
    counts = counted(jobs, sweep)
    done = [j for j in jobs if j.record.status in SUCCEEDED and _error(j.record) < WORST]
    running = [j for j in jobs if j.record.status == "running"]
    parts = [f"{counts.waiting} waiting", f"{counts.running} running", f"{counts.succeeded} done"]
    parts += [f"{counts.lost} failed"] if counts.lost else []
    best = min(done, key=lambda j: _error(j.record), default=None)
    parts += [f"best {_error(best.record):.4g} ({best.folder.name})"] if best else []
    left = seconds_left(jobs, counts, sweep.width, time.time())
    parts += [f"{duration(left)} left"] if left is not None else []
    return [", ".join(parts), *(f"  {job.folder.name}  {progress_of(job.folder)}" for job in running[:SHOWN])]


def counted(jobs: Sequence[Job], sweep: SweepRecord) -> Counts:
    states = [j.record.status for j in jobs]
    succeeded = sum(s in SUCCEEDED for s in states)
    running, lost = states.count("running"), sum(_ended(j.record) for j in jobs) - succeeded
    waiting = max(0, (sweep.total or len(jobs)) - succeeded - lost - running)
    return Counts(succeeded, sum(j.skipped for j in jobs), lost, running, waiting)


def seconds_left(jobs: Sequence[Job], counts: Counts, width: int, now: float) -> float | None:
    """By the mean time of the jobs that ended in this sitting, `width` at once; None before the first."""
    taken = [j.record.seconds for j in jobs if j.record.status in SUCCEEDED and not j.skipped]
    if not taken:
        return None
    mean = sum(taken) / len(taken)
    begun = [now - j.record.started for j in jobs if j.record.status == "running" and j.record.started]
    work = counts.waiting * mean + sum(max(0.0, mean - seconds) for seconds in begun)
    return work / max(1, min(width, counts.waiting + counts.running))


def progress_of(folder: Path) -> str:
    """`step 1200`, from the last whole line of metrics.jsonl."""
    try:
        with open(folder / "metrics.jsonl", "rb") as file:
            file.seek(max(0, (folder / "metrics.jsonl").stat().st_size - TAIL))
            lines = file.read().split(b"\n")[:-1]
        return f"step {json.loads(lines[-1])['step']}"
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return "starting"


def _ended(record: JobRecord) -> bool:
    return record.status not in ("waiting", "running")


def _error(record: JobRecord) -> float:
    return record.objective if record.objective is not None else float("inf")
