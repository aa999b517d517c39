"""The rank of this process among those of a job, from torchrun's environment. A single process is rank 0 of 1."""

from __future__ import annotations

import os


def rank() -> int:
    """The number of this process among all; rank 0 owns the run folder and prints."""
    return _read_int("RANK", 0)


def size() -> int:
    """The number of processes of the job."""
    return _read_int("WORLD_SIZE", 1)


def local_rank() -> int:
    """The number of this process among those on its machine."""
    return _read_int("LOCAL_RANK", 0)


def local_size() -> int:
    """The number of processes on this machine."""
    return _read_int("LOCAL_WORLD_SIZE", 1)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_int(name: str, default: int) -> int:
    # Some batch systems set WORLD_SIZE alone, for independent processes.
    launched = all(key in os.environ for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    text = os.environ.get(name, "")
    return int(text) if launched and text.isdecimal() else default
