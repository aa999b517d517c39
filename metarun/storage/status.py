"""What a sweeper is told of a run."""

from __future__ import annotations

import math
from typing import Any

SUCCEEDED = ("completed", "time is up")
FINAL = (*SUCCEEDED, "diverged")
"""Of these statuses a run would end so again."""

WORST = 1e9
"""Of a run that diverged, failed or was never validated: finite, and worse than any figure."""


def objective(status: str, val_error: Any) -> float:
    """To minimise: the best validation error (1 - accuracy, or the MSE); always finite."""
    known = isinstance(val_error, (int, float)) and math.isfinite(val_error)
    return min(float(val_error), WORST) if known and status != "diverged" else WORST
