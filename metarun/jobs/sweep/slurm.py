"""A worker of submitit on Slurm whose run was asked to stop.

Slurm sends SIGTERM to every process of a job that it pre-empts, requeues, cancels or ends. submitit ignores it, and
takes what the worker returns for the job's result, also if the job is about to start again. So a worker whose run was
stopped leaves without a result, and Slurm's own state of the job decides what the sweep sees: a job that is queued
again, or one that has ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import NoReturn

TIME_OUT = "UncompletedJobError"
"""What submitit raises in a worker ahead of its time limit, unless it puts the job back into the queue."""
OUT_OF_TIME = "the time limit of its job is near; hydra.launcher.max_num_timeout=10 queues such a job again"

PATIENCE = 60.0  # seconds, of Slurm's commands


def in_worker() -> bool:
    """Whether this process is such a worker."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def leave_worker() -> NoReturn:
    """End the worker; if Slurm would take the job for completed then, put it back into the queue first.

    That is so during the grace time of a pre-emption, for the job still counts as running. One that was cancelled must
    stay so, and `scontrol requeue` would start it again.
    """
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        number = job_number()
        state = _run("squeue", "--noheader", "--format=%T", "--jobs", number).strip()
        if state == "RUNNING":
            _run("scontrol", "requeue", number)
    raise SystemExit(128 + signal.SIGTERM)


def job_number() -> str:
    """Slurm's number of the job, as `17` or `17_3`. SLURM_JOB_ID of an array's last job would mean all of them."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout
