"""The jobs of a sweep: what was typed for each and how it ended, whether or not it came as far as being a run.

A sweep leaves job.json in the folder of each job. A single run has none; what was typed for it is in .hydra, and how it
ended in its summary.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metarun.errors import UserError
from metarun.report.compare.groups import COMPARED
from metarun.report.page.card import command_of
from metarun.report.read.facts import setting
from metarun.report.read.files import json_file, mapping, overrides_in
from metarun.report.read.runs import Run, find_runs
from metarun.storage.status import FINAL, SUCCEEDED
from metarun.storage.sweep_records import job_folders
from metarun.storage.text import is_number

LOST = ("diverged", "failed", "not finite")
"""A job that ended so has no figure, and its settings may be why. Others (running, interrupted) may still get one."""
UNREASONED = {
    "running": "it is going on, or it was killed",
    "waiting": "it was not begun",
    "interrupted": "it was stopped before its end",
    "not finite": "no validation was a finite number",
    "unknown": "neither job.json nor summary.json says how it ended",
}
OF_THE_SWEEP = ("sweep.", "hydra.sweep", "hydra.run.", "hydra/")  # overrides that a single run does without


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
        typed = [o.partition("=")[2] for o in self.overrides or () if o.lstrip("+").startswith("seed=")]
        known = (self.run.summary.get("seed"), setting(self.run, "seed")) if self.run else ()
        return next((str(v) for v in (*known, *typed) if v is not None), "")

    @property
    def succeeded(self) -> bool:
        return self.status in SUCCEEDED


def jobs_of(runs: Sequence[Run], others: Iterable[Path] = ()) -> list[Job]:
    """The jobs that train or test: those of the runs, then the folders of jobs that left no run, by number."""
    found = [_job(run.path, run) for run in runs] + [_job(path, None) for path in others]
    return sorted((job for job in found if _compared(job)), key=lambda job: (job.run is None, job.number))


def found_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The run folders at or below `folder`, and the folders of jobs that ended, or wait, before there was a run.

    `UserError` where there is neither.
    """
    jobs = sorted(job_folders(folder))
    try:
        runs = find_runs(folder)
    except UserError:
        if not jobs:
            raise
        runs = []
    return runs, [path for path in jobs if path not in runs]


def _job(path: Path, run: Run | None) -> Job:
    stored, _ = json_file(path / "job.json", dict)
    record = stored or {}
    typed = record.get("overrides")
    overrides = overrides_in(typed) if isinstance(typed, list) else run.overrides if run else None
    status, reason = _ending(run, record)
    number = record.get("number")
    return Job(path, run, overrides, status, reason, int(number) if is_number(number) else 0, stored is not None)


def _ending(run: Run | None, record: dict[str, Any]) -> tuple[str, str]:
    """As the summary says, if it says so: the sweep was not there to see a run end that was resumed by hand."""
    summary = run.summary if run else {}
    ended = summary if summary.get("status") in FINAL or not record.get("status") else record
    status = str(ended.get("status") or "unknown")
    if status in SUCCEEDED and run and never_finite(run):
        status = "not finite"
    reasons = [source.get("reason") for source in (ended, record) if source.get("status") == ended.get("status")]
    return status, str(next(filter(None, reasons), "") or UNREASONED.get(status, ""))


def never_finite(run: Run) -> bool:
    """Whether the run was validated, and each time to no finite figure."""
    return bool(run.of("val")) and not any(is_number(record.get("mean")) for record in run.of("val"))


def _compared(job: Job) -> bool:
    if job.run and job.run.config:
        return job.run.config.get("job") in COMPARED
    typed = [o.partition("=")[2] for o in job.overrides or () if o.startswith("job=")]
    return not typed or typed[-1] in COMPARED


def command(job: Job) -> str:
    """What runs the job again as a single run; empty where that is not known."""
    if not job.recorded or job.overrides is None:
        return command_of(job.run)[0] if job.run else ""
    kept = [o for o in job.overrides if not o.startswith(OF_THE_SWEEP)]
    return shlex.join(["metarun", *_flags(job.path), *kept])


def _flags(path: Path) -> list[str]:
    """The folders of settings that were given by --config-dir."""
    noted, _ = ({}, "") if (path / ".hydra").is_symlink() else mapping(path / ".hydra" / "hydra.yaml")
    sources: Any = noted
    for part in ("hydra", "runtime", "config_sources"):
        sources = sources.get(part) if isinstance(sources, dict) else None
    sources = sources if isinstance(sources, list) else []
    given = [str(s.get("path")) for s in sources if isinstance(s, dict) and s.get("provider") == "command-line"]
    return [word for folder in given if folder.isprintable() for word in ("--config-dir", folder)]
