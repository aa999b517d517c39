"""Whether to compile the outer step: decided by settings only, never by a clock, so that a resumed run agrees."""

from __future__ import annotations

import logging
import shutil

from metarun.device import Placement
from metarun.types import Params

log = logging.getLogger(__name__)

SMALL_MODEL = 20_000
"""Weights below which a step is bound by launching kernels, so that compiling it pays (MLP 40-40 has 1761)."""

COMPILE_PAYS_AFTER = 5_000
"""Outer steps after which the half minute that compiling takes is won back on such a model."""


def compiles(placement: Placement, params: Params, steps: int) -> bool:
    """Whether the settings or the size of the work ask for it, and a compiler is there."""
    small = sum(p.numel() for p in params.values()) < SMALL_MODEL
    pays = small and steps >= COMPILE_PAYS_AFTER and placement.device.type == "cpu"
    if placement.compile is False or (placement.compile == "auto" and not pays):
        return False
    if placement.device.type == "cpu" and not any(shutil.which(c) for c in ("g++", "clang++", "cl")):
        log.warning("device.compile=%s: no C++ compiler found, running uncompiled", placement.compile)
        return False
    return True
