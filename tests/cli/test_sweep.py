"""How many jobs of a sweep run at once. tests/jobs/test_sweep_runs.py has whole sweeps."""

from __future__ import annotations

import pytest

from metarun.cli.sweep import jobs_at_once


@pytest.mark.parametrize(
    ("launcher", "jobs", "width"),
    [
        ("hydra._internal.core_plugins.basic_launcher.BasicLauncher", None, 1),
        ("hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", -1, 8),
        ("hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", -2, 7),
        ("hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", 3, 3),
        ("hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher", None, 8),
        ("hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher", None, 0),
    ],
)
def test_jobs_at_once_follow_the_launcher(launcher: str, jobs: int | None, width: int) -> None:
    assert jobs_at_once(launcher, jobs, cores=8) == width
