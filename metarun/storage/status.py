"""How a run can end, and the number that a sweeper gets for it."""

from __future__ import annotations

import math
from typing import Any

SUCCEEDED = ("completed", "time is up")
FINAL = (*SUCCEEDED, "diverged")
"""Statuses of runs that would end the same way again."""

WORST = 1e9
"""The objective of a run that diverged, failed or was never validated: finite, and worse than any error."""


def objective(status: str, val_error: Any) -> float:
    """Return what a sweeper minimises: the best validation error (1 - accuracy, or the MSE); always finite."""
    known = isinstance(val_error, (int, float)) and math.isfinite(val_error)
    return min(float(val_error), WORST) if known and status != "diverged" else WORST
