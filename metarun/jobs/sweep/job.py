"""One job of a sweep, from "is it done already?" to its number for the sweeper. Nothing here raises for what goes
wrong in the job: it is recorded with its reason, and the sweeper gets the worst number."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from metarun.jobs.sweep import child, slurm
from metarun.jobs.sweep.identity import changed_files, yaml_digests
from metarun.storage.locks import file_lock, lock_slot
from metarun.storage.run_folder import RunFolder
from metarun.storage.status import FINAL, SUCCEEDED, WORST, objective
from metarun.storage.sweep_records import JobRecord, read_job, read_sweep, write_job

SLOTS = ".slots"
STOPPED_BY = 128  # and the signal's number, is how a run ends that was asked to stop
SITTING = "METARUN_SITTING"
"""The sitting that a launcher's worker belongs to; where the variable does not reach it, the one that began last."""


@dataclass(frozen=True)
class Job:
    """What a launcher was asked to run."""

    folder: Path
    sweep: Path  # the sweep's folder
    key: str
    number: int
    overrides: tuple[str, ...]
    flags: tuple[str, ...]  # of the command line, as --config-dir
    settings: tuple[Path, ...]  # folders of settings files


def run_job(job: Job) -> float:
    """Run it unless it is done, resume it if it was begun; return the number for the sweeper."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with file_lock(job.folder / "job") as lock:
        before, sweep = read_job(job.folder), read_sweep(job.sweep)
        known = before if before.key == job.key else JobRecord(key=job.key)
        visit = os.environ.get(SITTING, sweep.visit)
        done = known.final and not sweep.again
        visits = {**known.visits, visit: done}
        record = replace(known, number=job.number, overrides=list(job.overrides), visits=visits)
        if done:
            write_job(job.folder, record)
            return known.objective if known.objective is not None else WORST
        begun = known.attempts > 0 and known.status not in FINAL
        record = replace(record, status="waiting", objective=None, reason="")
        write_job(job.folder, record)
        # The job's process holds on to the lock as well. Windows cannot hand it over.
        keep = () if lock is None or os.name == "nt" else (lock,)
        with lock_slot(job.sweep / SLOTS, sweep.width) if sweep.width else contextlib.nullcontext():
            changed = changed_files(sweep.files, yaml_digests(job.settings))
            record = replace(record, status="running", attempts=record.attempts + 1, started=time.time())
            record = replace(record, changed=changed)
            write_job(job.folder, record)
            start = time.monotonic()
            ended = replace(record, status="interrupted", reason="the sweep was stopped")
            try:
                ended = run_process(job, record, begun, sweep.threads, keep)
                if ended.status == "interrupted" and slurm.in_worker():
                    slurm.leave_worker()
            except SystemExit:  # of a worker whose job is queued again, or was cancelled: Slurm knows
                ended = replace(record, status="waiting")
                raise
            except Exception as error:
                if type(error).__name__ != slurm.TIME_OUT:
                    raise
                ended = replace(ended, objective=WORST, reason=slurm.OUT_OF_TIME)
            finally:
                write_job(job.folder, replace(ended, seconds=time.monotonic() - start))
        return ended.objective if ended.objective is not None else WORST


def run_process(job: Job, record: JobRecord, begun: bool, threads: int, keep: Sequence[int]) -> JobRecord:
    """Run the job's process, from its checkpoint if it has one, and record what it left."""
    resumes = begun and RunFolder(job.folder).has_checkpoint()
    if not resumes:  # nothing of an attempt that came to nothing stays
        shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
        for name in ("metrics.jsonl", "timing.jsonl", "test.json", "summary.json", child.OUTPUT):
            (job.folder / name).unlink(missing_ok=True)
    arguments = child.build_command(job.overrides, job.flags, job.folder, resumes)
    ended = child.run_child(arguments, job.folder, child.build_environment(threads, job.sweep.name), keep)
    summary = RunFolder(job.folder).read_summary()
    # A job that neither trains nor tests writes no status.
    status = str(summary.get("status", "failed" if ended.code else "completed"))
    if ended.code == 0 and status in SUCCEEDED:
        return replace(record, status=status, objective=objective(status, summary.get("val_error")))
    if status == "diverged":
        return replace(record, status=status, objective=WORST, reason=str(summary.get("reason", "")))
    if (status == "interrupted" and ended.code > STOPPED_BY) or ended.code == -signal.SIGTERM:
        return replace(record, status="interrupted", objective=WORST, reason="stopped by a signal")
    return replace(record, status="failed", objective=WORST, reason=child.explain(ended))
