"""The jobs of the command line, a file or folder each. May import analyses and the rooms below it.

Each job is imported when it is run: training needs nothing of what draws and exports.
"""

from __future__ import annotations

import contextlib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from metarun.config.schema import Config, check
from metarun.errors import SettingError
from metarun.storage import ranks
from metarun.storage.locks import lock_run_folder
from metarun.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from metarun.jobs.result import Result

JOBS = {
    "train": "metarun.jobs.train.train_job",
    "evaluate": "metarun.jobs.train.evaluate_job",
    "predict": "metarun.jobs.predict.predict_job",
    "data": "metarun.jobs.data.data_job",
    "analyze": "metarun.jobs.analyze.analyze_job",
    "export": "metarun.jobs.export.job.export_job",
    "profile": "metarun.jobs.profile.job.profile_job",
}

SHARED = ("train", "evaluate")
"""Those that several processes can work on together."""


OF_LEARNERS = ("analyze", "predict", "export", "profile")
"""Those that need a learner which is a function of meta-parameters and tasks alone."""


def run(config: Config, folder: str | Path) -> Result:
    """Do `config.job`, leaving its record in `folder`."""
    check(config)
    if ranks.size() > 1 and config.job not in SHARED:
        raise SettingError("job", config.job, f"runs in one process, not in {ranks.size()}; start it without torchrun")
    if config.job in OF_LEARNERS:
        import_module("metarun.training.experiment").check_job(config)
    module, _, name = JOBS[config.job].rpartition(".")
    with lock_run_folder(Path(folder)) if ranks.rank() == 0 else contextlib.nullcontext():
        return getattr(import_module(module), name)(config, RunFolder(Path(folder)))
