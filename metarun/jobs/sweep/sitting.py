"""One sitting of a sweep: from its first job to its last lines. Stopped or killed, the same command is the next one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from metarun.jobs.sweep.identity import changed_files, digest_json
from metarun.jobs.sweep.job import SITTING
from metarun.jobs.sweep.overview import Counts, JobState, Overview, count_jobs, read_jobs
from metarun.storage.run_folder import new_folder
from metarun.storage.status import WORST
from metarun.storage.sweep_records import SweepRecord, read_sweep, write_job, write_sweep
from metarun.storage.text import count_nouns

PARENT = Path("multirun")
SHOWN = 10  # failed jobs at the end


def command_key(overrides: Sequence[str], sweeper: object) -> str:
    """The same for the same sweep: what is swept, by which sweeper, whatever the order of the overrides."""
    return digest_json([sorted(overrides), sweeper])


def sweep_folder(key: str) -> Path:
    """The folder in which this sweep was begun, the newest one of its command; else a new one, multirun/DATE/TIME."""
    begun = [path.parent for path in PARENT.glob("*/*/sweep.json") if read_sweep(path.parent).key == key]
    if begun:
        return max(begun, key=lambda folder: (folder / "sweep.json").stat().st_mtime)
    now = datetime.now()
    return new_folder(PARENT / f"{now:%Y-%m-%d}", f"{now:%H-%M-%S}")


class Sitting:
    """Writes sweep.json, shows the overview, and reports the result at the end."""

    def __init__(self, folder: Path, record: SweepRecord) -> None:
        self.folder = folder
        self.before = read_sweep(folder)
        self.record = replace(record, visit=uuid.uuid4().hex)
        self.overview = Overview(folder, self.record)
        self.exit_code = 0

    def begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_sweep(self.folder, self.record)
        os.environ[SITTING] = self.record.visit
        total = count_nouns(self.record.total, "job") if self.record.total else "jobs"
        at_once = f", {self.record.width} at once" if self.record.width > 1 else ""
        threads = f"{count_nouns(self.record.threads, 'thread')} each"
        verb = "continued" if self.before.key else "sweep"
        show = self.overview.console.print
        show(f"{verb}: {total}{at_once}, {threads}, in {self.folder}")
        edited = changed_files(self.before.files, self.record.files) if self.before.key else []
        if edited:
            show(f"settings edited since the sweep began: {', '.join(edited)}; jobs that they change run again")
        self.overview.thread.start()

    def lose(self, number: int, reason: str) -> None:
        """Record that a job has ended without a word; the same command takes it up again."""
        found = [job for job in read_jobs(self.folder, self.record.visit) if job.record.number == number]
        if not found:  # the job came as far as no folder
            self.overview.console.print(f"job {number + 1} of the sweep: {reason}", markup=False)
        elif not found[0].ended:
            lost = replace(found[0].record, status="interrupted", objective=WORST, reason=reason)
            write_job(found[0].folder, lost)

    def end(self) -> None:
        """Print the last lines, set the exit code: 0, or 1 where jobs did not succeed, 2 where none did."""
        jobs = read_jobs(self.folder, self.record.visit)
        counts = count_jobs(jobs, self.record)
        for line in last_lines(jobs, counts):
            self.overview.console.print(line, markup=False)
        if counts.lost or counts.waiting or counts.running:
            self.exit_code = 1 if counts.succeeded else 2


def last_lines(jobs: Sequence[JobState], counts: Counts) -> list[str]:
    """Which jobs failed and why, and how many succeeded. Those that diverged have been shown, and are in the table."""
    lost = [j for j in jobs if not j.succeeded and j.record.status != "diverged"]
    lines = [f"{j.record.status}: {j.folder.name}: {j.record.reason}" for j in lost[:SHOWN]]
    lines += [f"... and {len(lost) - SHOWN} more"] if len(lost) > SHOWN else []
    skipped = f" ({counts.skipped} of them in an earlier run of this sweep)" if counts.skipped else ""
    jobs_in_all = count_nouns(counts.ended + counts.running + counts.waiting, "job")
    return [*lines, f"{counts.succeeded} of {jobs_in_all} succeeded{skipped}"]
