"""The jobs of the command line, a file or folder each. May import analyses and the rooms below it.

Each job is imported when it is run: training needs nothing of what draws and exports.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarun.compute.portable import check_portable, pin_arithmetic
from metarun.config.schema import JOBS_OF_A_RUN, PORTABLE, Config, check
from metarun.errors import SettingError
from metarun.storage import ranks
from metarun.storage.locks import lock_run_folder
from metarun.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from metarun.jobs.result import Result
    from metarun.training.own_parts import OwnParts

MODULES = {"evaluate": "train", "export": "export.job", "profile": "profile.job"}
"""Where the function JOB_job of a job is, if not in jobs/JOB.py."""

SHARED = ("train", "evaluate")
"""Jobs that several processes can work on together."""

OF_LEARNERS = ("analyze", "predict", "export", "profile")
"""Jobs that need a learner which is a function of meta-parameters and tasks alone."""


def load_job(job: str) -> Callable[..., Result]:
    """Import the function of a job."""
    module: Any = import_module(f"metarun.jobs.{MODULES.get(job, job)}")
    return getattr(module, f"{job}_job")


def run(config: Config, folder: str | Path, own: OwnParts | None = None) -> Result:
    """Do `config.job`, with `folder` as its run folder; `own`: Python objects in place of what settings name."""
    check(config)
    if config.device.deterministic == PORTABLE:
        check_portable(config.device)
        pin_arithmetic()
    if config.run and config.job not in JOBS_OF_A_RUN:
        raise SettingError("run", config.run, f"job={config.job} reads no run; choices: {', '.join(JOBS_OF_A_RUN)}")
    elsewhere = config.resume and Path(config.resume).absolute() != Path(folder).absolute()
    if elsewhere and ranks.rank() == 0:  # the others write nothing
        raise SettingError("resume", config.resume, f"continues in its own folder, and not in {folder}")
    if ranks.size() > 1 and config.job not in SHARED:
        raise SettingError("job", config.job, f"runs in one process, not in {ranks.size()}; start it without torchrun")
    if config.job in OF_LEARNERS:
        import_module("metarun.training.experiment").check_job(config)
    more = {}
    if own is not None:
        config, more = import_module("metarun.training.own_parts").record_objects(config, own), {"own": own}
    with lock_run_folder(Path(folder)) if ranks.rank() == 0 else contextlib.nullcontext():
        return load_job(config.job)(config, RunFolder(Path(folder)), **more)
