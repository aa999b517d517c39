"""Which of a job's processes this is, as torchrun says in the environment. A process by itself is rank 0 of 1."""

from __future__ import annotations

import os


def rank() -> int:
    """The number of this process among all; 0 owns the run folder and speaks."""
    return _number("RANK", 0) if _launched() else 0


def size() -> int:
    """How many processes work on the job."""
    return _number("WORLD_SIZE", 1) if _launched() else 1


def local_rank() -> int:
    """The number of this process among those on its machine."""
    return _number("LOCAL_RANK", 0) if _launched() else 0


def local_size() -> int:
    """How many of the processes are on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1) if _launched() else 1


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _launched() -> bool:
    """Some batch systems set WORLD_SIZE alone, for processes that know nothing of one another."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default
