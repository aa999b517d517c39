"""The jobs of a sweep: the overrides of each and how it ended, whether or not it became a run.

A sweep leaves job.json in the folder of each job. A single run has none: its overrides are in .hydra, and how it ended
is in its summary.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from metarun.errors import UserError
from metarun.report.read.facts import command_of, setting
from metarun.report.read.files import as_mappings, look_up, parse_overrides, read_json, read_settings
from metarun.report.read.runs import COMPARED_JOBS, Run, find_runs
from metarun.storage.status import FINAL, SUCCEEDED
from metarun.storage.sweep_records import job_folders
from metarun.storage.text import is_number

LOST = ("diverged", "failed", "not finite")
"""A job that ended so has no result, and its settings may be the cause. Others (running, interrupted) may get one."""
DEFAULT_REASONS = {
    "running": "it is still running, or it was killed",
    "waiting": "it was not started",
    "interrupted": "it was stopped before its end",
    "not finite": "no validation was a finite number",
    "unknown": "neither job.json nor summary.json records how it ended",
}
SWEEP_OVERRIDES = ("sweep.", "hydra.sweep", "hydra.run.", "hydra/")  # a single run does without them


class Job(NamedTuple):
    """One run, or a job that left none."""

    path: Path
    run: Run | None
    overrides: tuple[str, ...] | None
    status: str
    reason: str
    number: int  # in its sweep
    recorded: bool  # by a sweep, in job.json

    @property
    def seed(self) -> str:
        overrides = [o.partition("=")[2] for o in self.overrides or () if o.lstrip("+").startswith("seed=")]
        known = (self.run.summary.get("seed"), setting(self.run, "seed")) if self.run else ()
        return next((str(v) for v in (*known, *overrides) if v is not None), "")

    @property
    def succeeded(self) -> bool:
        return self.status in SUCCEEDED

    @property
    def compared(self) -> bool:
        """Whether the job trains or tests."""
        if self.run and self.run.config:
            return self.run.config.get("job") in COMPARED_JOBS
        jobs = [o.partition("=")[2] for o in self.overrides or () if o.startswith("job=")]
        return not jobs or jobs[-1] in COMPARED_JOBS


def find_jobs(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the run folders at or below `folder`, and the folders of jobs that left no run.

    Raise `UserError` if there is neither.
    """
    jobs = sorted(job_folders(folder))
    try:
        runs = find_runs(folder)
    except UserError:
        if not jobs:
            raise
        runs = []
    return runs, [path for path in jobs if path not in runs]


def list_jobs(runs: Sequence[Run], others: Iterable[Path] = ()) -> list[Job]:
    """Return the jobs that train or test: those of the runs, then the folders of jobs that left no run, by number."""
    jobs = [_read_job(run.path, run) for run in runs] + [_read_job(path, None) for path in others]
    return sorted((job for job in jobs if job.compared), key=lambda job: (job.run is None, job.number))


def _read_job(path: Path, run: Run | None) -> Job:
    stored, _ = read_json(path / "job.json", dict)
    record = stored or {}
    noted = record.get("overrides")
    overrides = parse_overrides(noted) if isinstance(noted, list) else run.overrides if run else None
    # The summary is right if the run ended: the sweep did not see the end of a run that was resumed by hand.
    summary = run.summary if run else {}
    source = summary if summary.get("status") in FINAL or not record.get("status") else record
    status = str(source.get("status") or "unknown")
    reasons = [found.get("reason") for found in (source, record) if found.get("status") == source.get("status")]
    if status in SUCCEEDED and run and run.of("val") and not any(is_number(r.get("mean")) for r in run.of("val")):
        status = "not finite"
    reason = str(next(filter(None, reasons), "") or DEFAULT_REASONS.get(status, ""))
    number = record.get("number")
    return Job(path, run, overrides, status, reason, int(number) if is_number(number) else 0, stored is not None)


def rerun_command(job: Job) -> str:
    """Return the command that runs the job again as a single run; empty if unknown."""
    if not job.recorded or job.overrides is None:
        return command_of(job.run)[0] if job.run else ""
    kept = [o for o in job.overrides if not o.startswith(SWEEP_OVERRIDES)]
    hydra = job.path / ".hydra"
    noted = {} if hydra.is_symlink() else read_settings(hydra / "hydra.yaml")[0]
    sources = as_mappings(look_up(noted, "hydra.runtime.config_sources"))
    given = [str(s.get("path")) for s in sources if s.get("provider") == "command-line"]
    flags = [word for folder in given if folder.isprintable() for word in ("--config-dir", folder)]
    return shlex.join(["metarun", *flags, *kept])
