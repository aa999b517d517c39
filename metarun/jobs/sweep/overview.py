"""What a user sees while a sweep goes on: one line for each job that ended, and the state of the others."""

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

from metarun.jobs.sweep.child import read_tail
from metarun.storage.progress import in_notebook_cell
from metarun.storage.status import SUCCEEDED, WORST
from metarun.storage.sweep_records import JobRecord, SweepRecord, jobs_of
from metarun.storage.text import duration

POLL, SHARE = 0.5, 20  # seconds between two looks, but at least so many times what a look at all jobs takes
SHOWN = 8  # running jobs


class JobState(NamedTuple):
    """A job that this sitting has come to."""

    folder: Path
    record: JobRecord
    skipped: bool = False  # by this sitting: it was done before

    @property
    def ended(self) -> bool:
        return self.record.status not in ("waiting", "running")

    @property
    def succeeded(self) -> bool:
        return self.record.status in SUCCEEDED

    @property
    def error(self) -> float | None:
        """The validation error; None where there is none."""
        found = self.record.objective
        return found if self.succeeded and found is not None and found < WORST else None


def read_jobs(folder: Path, visit: str) -> list[JobState]:
    """The jobs that this sitting has come to."""
    return [JobState(path, record, record.visits[visit]) for path, record in jobs_of(folder, visit)]


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
    """Follows the jobs' records in a thread of its own, from `thread.start` to `stop`."""

    def __init__(self, folder: Path, sweep: SweepRecord, console: Console | None = None) -> None:
        self.folder, self.sweep = folder, sweep
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.reported: set[Path] = set()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True, name="overview")
        live = self.console.is_terminal and not in_notebook_cell()
        self.live = Live(console=self.console, refresh_per_second=2) if live else None

    def stop(self) -> None:
        """End the thread, and leave a terminal as it was: with its cursor."""
        self.over.set()
        if self.thread.is_alive():
            self.thread.join()

    def _follow(self) -> None:
        if self.live:
            self.live.start()
        pause = POLL
        while not self.over.wait(pause):
            start = time.monotonic()
            self._update()
            pause = max(POLL, SHARE * (time.monotonic() - start))
        self._update()
        if self.live:
            self.live.update(Text(""))
            self.live.stop()

    def _update(self) -> None:
        jobs = read_jobs(self.folder, self.sweep.visit)
        for job in jobs:
            if job.folder not in self.reported and job.ended:
                self.reported.add(job.folder)
                self.console.print(Text(describe_job(job, len(self.reported), self.sweep.total)))
        if self.live:
            self.live.update(Text("\n".join(describe_progress(jobs, self.sweep))))


def describe_job(job: JobState, number: int, total: int | None) -> str:
    """How a job ended: `[ 3/27] completed  val_error 0.123  12.1 s  maml-seed1-3f2a9c1b`."""
    record = job.record
    error = f"val_error {job.error:.4g}" if job.error is not None else ""
    state = "skipped" if job.skipped else record.status
    seconds = "" if job.skipped else duration(record.seconds)
    why = f"  {record.reason}" if record.reason else ""
    of = f"{number:>{len(str(total))}}/{total}" if total else str(number)
    edited = f"  (settings edited since the sweep began: {', '.join(record.changed)})" if record.changed else ""
    return f"[{of}] {state:<10} {error:<19} {seconds:>10}  {job.folder.name}{why}{edited}"


def describe_progress(jobs: Sequence[JobState], sweep: SweepRecord) -> list[str]:
    """How many wait, run, are done; the best so far; the time left; the running jobs with their step."""
    counts = count_jobs(jobs, sweep)
    parts = [f"{counts.waiting} waiting", f"{counts.running} running", f"{counts.succeeded} done"]
    parts += [f"{counts.lost} failed"] if counts.lost else []
    errors = [(job.error, job.folder.name) for job in jobs if job.error is not None]
    parts += [f"best {error:.4g} ({name})" for error, name in sorted(errors)[:1]]
    left = estimate_seconds_left(jobs, counts, sweep.width, time.time())
    parts += [f"{duration(left)} left"] if left is not None else []
    running = [job.folder for job in jobs if job.record.status == "running"]
    return [", ".join(parts), *(f"  {folder.name}  {read_step(folder)}" for folder in running[:SHOWN])]


def count_jobs(jobs: Sequence[JobState], sweep: SweepRecord) -> Counts:
    succeeded, ended = sum(job.succeeded for job in jobs), sum(job.ended for job in jobs)
    running = sum(job.record.status == "running" for job in jobs)
    waiting = max(0, (sweep.total or len(jobs)) - ended - running)
    return Counts(succeeded, sum(job.skipped for job in jobs), ended - succeeded, running, waiting)


def estimate_seconds_left(jobs: Sequence[JobState], counts: Counts, width: int, now: float) -> float | None:
    """By the mean time of the jobs that ended in this sitting, `width` at once; None before the first."""
    seconds = [job.record.seconds for job in jobs if job.succeeded and not job.skipped]
    if not seconds:
        return None
    mean = sum(seconds) / len(seconds)
    begun = [
        max(0.0, now - job.record.started) for job in jobs if job.record.status == "running" and job.record.started
    ]
    work = counts.waiting * mean + sum(max(0.0, mean - elapsed) for elapsed in begun)
    return work / max(1, min(width, counts.waiting + counts.running))


def read_step(folder: Path) -> str:
    """`step 1200`, from the last whole line of metrics.jsonl."""
    try:
        lines = read_tail(folder / "metrics.jsonl").split(b"\n")[:-1]
        return f"step {json.loads(lines[-1])['step']}"
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return "starting"
