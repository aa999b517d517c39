"""What a job ends with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metarun.storage.status import objective
from metarun.training.experiment import Experiment
from metarun.types import Params


@dataclass(frozen=True)
class Result:
    """The summary that is also in summary.json, and the objects to go on with (of jobs that train or test)."""

    status: str  # completed, time is up, interrupted, diverged
    summary: dict[str, Any] = field(repr=False)
    folder: Path
    params: Params = field(default_factory=dict, repr=False)
    experiment: Experiment | None = field(default=None, repr=False)
    signal: int | None = None  # that interrupted it

    @property
    def objective(self) -> float:
        """For a sweeper to minimise."""
        return objective(self.status, self.summary.get("val_error"))
