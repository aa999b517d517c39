"""`metarun -m`: what Hydra's sweepers and launchers call, around metarun/sweep."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.config.catalogue import PACKAGED, conf_folder
from metarun.errors import UserError
from metarun.storage import ranks

if TYPE_CHECKING:
    from metarun.jobs.sweep.sitting import Sitting
    from metarun.storage.sweep_records import SweepRecord

PASSED_ON = ("hydra.searchpath", "hydra.job.", "hydra.job_logging", "hydra/job_logging", "hydra.verbose")
"""What of Hydra's own settings a sweep's jobs are given, as they are typed."""

SITTINGS: list[Sitting] = []  # of the sweep that this process is
EXIT_CODES: list[int] = []


def new_sweep_folder(overrides: ListConfig, sweeper: DictConfig, jobs: int | None) -> str:
    """The folder of the sweep that was typed: where it was begun, if it was. The first that is asked of a sweep, and so
    where its launcher's `n_jobs` is checked."""
    from metarun.jobs.sweep.sitting import sweep_folder
    from metarun.jobs.sweep.slots import check_jobs

    if ranks.size() > 1:
        raise UserError(f"-m: a sweep starts its runs itself; not under torchrun with {ranks.size()} processes")
    check_jobs(jobs)
    return str(sweep_folder(_command_key(overrides, sweeper)))


def new_job_folder(*, _root_: DictConfig) -> str:
    """The name of a job's folder: what was typed, and a digest of all settings, so that no two runs share one."""
    from metarun.jobs.sweep.identity import folder_name
    from metarun.storage.sweep_records import read_sweep

    fixed = read_sweep(Path(_root_.hydra.sweep.dir)).fixed
    settings = OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"])
    return folder_name(list(_root_.hydra.overrides.task), fixed, _run_key(settings))


# Here, since this module is what a launcher's workers import.
OmegaConf.register_new_resolver("metarun.sweep", new_sweep_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver("metarun.job", new_job_folder, replace=True)


def _run_key(settings: DictConfig) -> str:
    from metarun.jobs.sweep.identity import run_key

    values: Any = OmegaConf.to_container(settings, resolve=True)
    return run_key(values)


class SweepReport(Callback):
    """Around the jobs of a sweep: what it is, how it goes on, and at the end a page that compares its runs."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        _seed_sampler(config)
        from metarun.jobs.sweep.sitting import Sitting

        try:
            folder = Path(config.hydra.sweep.dir)
        except OmegaConfBaseException:  # Hydra asks again, where it ends the sweep; an error in here would be a warning
            return
        SITTINGS.append(Sitting(folder, _sweep_record(config)))
        SITTINGS[-1].begin()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        from metarun.report import write_report
        from metarun.report.tables.sweep import sweep_text

        SITTINGS[-1].stop()
        for line in sweep_text(folder):
            print(line)
        EXIT_CODES.append(SITTINGS[-1].end())
        if not config.get("report", True):
            return
        try:
            print(f"report of the sweep: {write_report([folder])}")
        except UserError as error:  # no job came as far as having a folder
            print(f"metarun: no report of the sweep: {error}", file=sys.stderr)


def _seed_sampler(config: DictConfig) -> None:
    """A sampler of Optuna without a seed would propose other points when the same command goes on."""
    sampler = config.hydra.sweeper.get("sampler")
    if sampler is not None and "seed" in sampler and sampler.seed is None:
        sampler.seed = 0


def _sweep_record(config: DictConfig) -> SweepRecord:
    from metarun.jobs.sweep.identity import yaml_digests
    from metarun.jobs.sweep.slots import width_of
    from metarun.storage.sweep_records import SweepRecord

    hydra_node, settings = config.hydra, config.sweep
    launcher: Any = OmegaConf.to_container(hydra_node.launcher, resolve=True)
    width = settings.jobs or width_of(launcher["_target_"], launcher.get("n_jobs"), ranks.cores())
    threads = config.device.threads or launcher.get("cpus_per_task") or max(1, ranks.cores() // max(1, width))
    return SweepRecord(
        command=list(hydra_node.overrides.task),
        fixed=[o.get_key_element() for o in _overrides_of(config) if not o.is_sweep_override()],
        key=_command_key(hydra_node.overrides.task, hydra_node.sweeper),
        total=_jobs_of(config),
        width=width,
        threads=threads,
        again=settings.again,
        files=yaml_digests(_settings_folders(hydra_node.runtime)),
    )


def _command_key(overrides: ListConfig, sweeper: DictConfig) -> str:
    from metarun.jobs.sweep.sitting import command_key

    typed = [o for o in overrides if not o.startswith("sweep.")]
    return command_key(typed, OmegaConf.to_container(sweeper, resolve=True))


def _jobs_of(config: DictConfig) -> int | None:
    """How many jobs the sweep has, where its sweeper says so beforehand."""
    sweeper = config.hydra.sweeper
    if "n_trials" in sweeper:
        return sweeper.n_trials
    swept = {o.get_key_element(): o for o in _overrides_of(config) if o.is_sweep_override()}.values()
    if not all(o.is_discrete_sweep() for o in swept) or any(o.value_type == ValueType.GLOB_CHOICE_SWEEP for o in swept):
        return None
    return math.prod(sum(1 for _ in o.sweep_string_iterator()) for o in swept)


def _overrides_of(config: DictConfig) -> list[Override]:
    """What the sweep's settings and its command give, in this order."""
    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    return OverridesParser.create().parse_overrides([*given, *config.hydra.overrides.task])


def _settings_folders(runtime: Any) -> tuple[Path, ...]:
    """The folders that settings are composed from, Hydra's own aside."""
    files = [Path(s.path) for s in runtime.config_sources if s.schema == "file"]
    return (*files, conf_folder()) if not files or PACKAGED.is_dir() else tuple(files)


def job_of_sweep(composed: DictConfig) -> float:
    """A job of a sweep, in a process of its own."""
    from metarun.jobs.sweep.job import Job, run_job

    hydra_node = HydraConfig.get()
    sources = hydra_node.runtime.config_sources
    flags = [part for s in sources if s.provider == "command-line" for part in ("--config-dir", s.path)]
    passed = [o for o in hydra_node.overrides.hydra if o.startswith(PASSED_ON)]
    job = Job(
        folder=Path(hydra_node.runtime.output_dir),
        sweep=Path(hydra_node.sweep.dir),
        key=_run_key(composed),
        number=hydra_node.job.num,
        overrides=(*hydra_node.overrides.task, *passed),
        flags=tuple(flags),
        settings=_settings_folders(hydra_node.runtime),
    )
    return run_job(job)


def end_with_parent() -> None:
    """In the process of a sweep's job: stop when the sweep's process is gone."""
    if "METARUN_PARENT" in os.environ:
        from metarun.jobs.sweep.child import end_with_parent

        end_with_parent()


def exit_code() -> int:
    """Of the sweep that this process was, if it was one."""
    return EXIT_CODES[-1] if EXIT_CODES else 0
