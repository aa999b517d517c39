"""The jobs of the command line."""

from __future__ import annotations

from pathlib import Path

from metarun.analyses.job import analyze_job
from metarun.config import Config, check
from metarun.export import export_job
from metarun.predict import predict_job
from metarun.prepare import data_job
from metarun.record import RunFolder
from metarun.result import Result
from metarun.training import evaluate_job, train_job

JOBS = {
    "train": train_job,
    "evaluate": evaluate_job,
    "predict": predict_job,
    "data": data_job,
    "analyze": analyze_job,
    "export": export_job,
}


def run(config: Config, folder: str | Path) -> Result:
    """Do `config.job`, leaving its record in `folder`."""
    check(config)
    return JOBS[config.job](config, RunFolder(Path(folder)))
