"""Jobs of submitit that ended without a result: killed, cancelled, or never begun. submitit raises for the first of
them, and Hydra's launcher then leaves the others; here such a job has the worst number, and the sweep goes on."""

from __future__ import annotations

from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from metarun.jobs.sweep.sitting import Sitting
from metarun.storage.status import WORST


def outlive_lost_jobs(sitting: Sitting) -> None:
    """Have submitit report lost jobs to `sitting` in place of raising."""
    from submitit.core.core import Job
    from submitit.core.utils import UncompletedJobError

    results = Job.results

    def find_results(job: Job[Any]) -> list[Any]:
        try:
            return results(job)
        except UncompletedJobError:
            number = job.submission().args[2]  # of what SlurmLauncher and LocalLauncher submit
            sitting.lose(number, f"job {job.job_id} ended without a result (state {job.state})")
            return [JobReturn(_return_value=WORST, status=JobStatus.COMPLETED)]

    Job.results = find_results  # type: ignore[method-assign, assignment]
