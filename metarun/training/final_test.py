"""What the final test takes from its settings: its precision, and tasks that share no class."""

from __future__ import annotations

import logging

from metarun.compute.device import Placement, emulates_bfloat16
from metarun.config.schema import Config
from metarun.errors import SettingError, require
from metarun.types import Dataset, DatasetOptions, EpisodeSpec, optional

log = logging.getLogger(__name__)


def choose_test_precision(config: Config, placement: Placement) -> str:
    """The precision of the test; log a warning where the job computes in an emulated one."""
    trained, asked = config.device.precision, config.test.precision
    if trained == "float64" and asked != "auto":
        raise SettingError("test.precision", asked, "must be auto where device.precision=float64")
    emulated = emulates_bfloat16(placement.device)
    auto = "float32" if trained == "bfloat16" and emulated else trained
    chosen = auto if asked == "auto" else asked
    if emulated and "bfloat16" in (chosen, trained if config.job != "evaluate" else ""):
        log.warning("device.precision=bfloat16: this CPU computes it in software; float32 is faster")
    return chosen


def take_disjoint(dataset: Dataset, spec: EpisodeSpec, name: str) -> tuple[Dataset, int]:
    """The data set of that name with test tasks that share no class, and their largest number."""
    make = optional(dataset, DatasetOptions, "disjoint")
    if make is None:
        needed = f"data={name} has no classes of images to divide; choices: drawn"
        raise SettingError("test.classes", "disjoint", needed)
    try:
        found, most = make(spec.ways)
    except SettingError as error:
        raise error.under("data") from error
    if most < 2:
        raise SettingError("test.classes", "disjoint", f"leaves {most} test tasks of {spec.ways} ways; choices: drawn")
    return found, most


def check_disjoint(tasks: int, dataset: Dataset, most: int) -> None:
    """Raise `SettingError` if so many test tasks that share no class give no interval, for which each data set needs
    two; `most` is their largest number."""
    names = optional(dataset, DatasetOptions, "task_sets")
    sets = len(set(names("test", 0, 0, range(most)))) if names else 1
    require(tasks > 1, "test.tasks", tasks, "must be at least 2 with test.classes=disjoint")
    needed = f"must be at least {2 * sets} with test.classes=disjoint, 2 for each data set"
    require(tasks >= 2 * sets, "test.tasks", tasks, needed)
