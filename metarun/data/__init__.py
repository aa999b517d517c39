"""Data sets: episodes as a pure function of (seed, split, step, task index). May import compute and below."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metarun.data.arrays import from_arrays, from_tasks
    from metarun.data.table import from_frame
    from metarun.data.windows import from_recordings

__all__ = ["from_arrays", "from_frame", "from_recordings", "from_tasks"]

MODULES = {"from_arrays": "arrays", "from_frame": "table", "from_recordings": "windows", "from_tasks": "arrays"}
"""Where each function is: imported when it is used, since most runs use none of them."""


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
