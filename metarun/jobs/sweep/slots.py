"""How many jobs of a sweep run at once, whoever launched them: each holds one of so many locks while it runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from metarun.errors import require

POLL = 0.2  # seconds
UNLIMITED = 0
"""Not ours to decide: a cluster gives each job its cores."""


def width_of(launcher: str, jobs: int | None, cores: int) -> int:
    """Jobs that a launcher of Hydra runs at once on this machine, 0 where that is not ours to say.

    joblib's `n_jobs` is read as joblib reads it (-1: all cores); Hydra's own runs one after another. Others start all
    jobs at once (submitit's local executor) or as many as there are cores (Ray on one node): as many as there are
    cores. Slurm knows what it has.
    """
    if "Basic" in launcher:
        return 1
    if "Slurm" in launcher:
        return UNLIMITED
    if jobs is not None:
        return max(1, jobs if jobs > 0 else cores + 1 + jobs)
    return cores


def check_jobs(jobs: int | None) -> None:
    """Refuse a number that joblib cannot use, before anything is started."""
    needed = "must be how many jobs run at once, or negative: -1 all cores, -2 all but one"
    require(jobs != 0, "hydra.launcher.n_jobs", jobs, needed)


@contextlib.contextmanager
def slot(folder: Path, count: int) -> Iterator[int]:
    """Wait for one of `count` places in the folder; gives its number. The system frees the place of whoever dies."""
    try:
        import fcntl
    except ImportError:  # Windows: whatever the launcher does
        count = UNLIMITED
    if count == UNLIMITED:
        yield 0
        return
    folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(folder / str(n), "wb")) for n in range(count)]
        while True:
            for number, file in enumerate(files):
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    yield number
                    return
            time.sleep(POLL)
