"""Data sets: episodes as a pure function of (seed, split, step, task index). May import compute and below."""

from metarun.data.arrays import from_arrays, from_tasks
from metarun.data.table import from_frame
from metarun.data.windows import from_recordings

__all__ = ["from_arrays", "from_frame", "from_recordings", "from_tasks"]
