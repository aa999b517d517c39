"""`metarun -m`: what Hydra's sweepers and launchers call, around metarun/jobs/sweep."""

from __future__ import annotations

import math
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.config.catalogue import PACKAGED, conf_folder
from metarun.errors import Interrupted, UserError, require
from metarun.jobs.sweep.identity import folder_name, run_key, yaml_digests
from metarun.storage import ranks
from metarun.storage.sweep_records import SweepRecord, read_sweep
from metarun.training.signals import STOP_SIGNALS

if TYPE_CHECKING:
    from metarun.jobs.sweep.sitting import Sitting

PASSED_ON = ("hydra.searchpath", "hydra.job.", "hydra.job_logging", "hydra/job_logging", "hydra.verbose")
"""The settings of Hydra's own that a sweep passes on to its jobs, as overrides."""

SITTINGS: list[Sitting] = []  # of the sweep that this process is


def new_sweep_folder(overrides: ListConfig, sweeper: DictConfig, jobs: int | None) -> str:
    """The folder of this sweep: where it was begun, if it was. Hydra asks for it before anything else of a sweep, so
    that its launcher's `n_jobs` is checked here."""
    from metarun.jobs.sweep.sitting import sweep_folder

    if ranks.size() > 1:
        raise UserError(f"-m: a sweep starts its runs itself; not under torchrun with {ranks.size()} processes")
    needed = "must be how many jobs run at once, or negative: -1 all cores, -2 all but one"
    require(jobs != 0, "hydra.launcher.n_jobs", jobs, needed)
    return str(sweep_folder(_command_key(overrides, sweeper)))


def new_job_folder(*, _root_: DictConfig) -> str:
    """The name of a job's folder: its overrides, and a digest of all settings, so that no two runs share one."""
    fixed = read_sweep(Path(_root_.hydra.sweep.dir)).fixed
    settings = OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"])
    return folder_name(list(_root_.hydra.overrides.task), fixed, _run_key(settings))


# Here, since this module is what a launcher's workers import.
OmegaConf.register_new_resolver("metarun.sweep", new_sweep_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver("metarun.job", new_job_folder, replace=True)


def _run_key(settings: DictConfig) -> str:
    values: Any = OmegaConf.to_container(settings, resolve=True)
    return run_key(values)


def _command_key(overrides: ListConfig, sweeper: DictConfig) -> str:
    from metarun.jobs.sweep.sitting import command_key

    own = [o for o in overrides if not o.startswith("sweep.")]
    return command_key(own, OmegaConf.to_container(sweeper, resolve=True))


class SweepReport(Callback):
    """Around the jobs of a sweep: the overview, and at the end a page that compares its runs."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        sampler = config.hydra.sweeper.get("sampler")
        if sampler is not None and "seed" in sampler and sampler.seed is None:
            sampler.seed = 0  # without a seed Optuna would propose other points when the same command goes on
        from metarun.jobs.sweep.sitting import Sitting

        try:
            folder = Path(config.hydra.sweep.dir)
        except OmegaConfBaseException:  # Hydra asks again, where it ends the sweep; an error in here would be a warning
            return
        SITTINGS.append(Sitting(folder, _describe_sweep(config)))
        if "submitit" in config.hydra.launcher._target_:
            from metarun.cli.lost_jobs import outlive_lost_jobs

            outlive_lost_jobs(SITTINGS[-1])
        stop_on_signals()
        SITTINGS[-1].begin()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        from metarun.report.tables.sweep import sweep_text
        from metarun.report.write import write_report

        SITTINGS[-1].overview.stop()
        for line in sweep_text(folder):
            print(line)
        SITTINGS[-1].end()
        if not config.get("report", True) or config.get("job", "train") not in ("train", "evaluate"):
            return  # the others leave no runs
        try:
            print(f"report of the sweep: {write_report([folder], interactive=True)}")
        except UserError as error:  # no job came as far as having a folder
            print(f"metarun: no report of the sweep: {error}", file=sys.stderr)


def stop_on_signals() -> None:
    """In the sweep's own process: a stop signal ends it as Ctrl-C does, once its jobs have written their checkpoints.
    Further ones mean nothing, for batch systems repeat them."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Interrupted(number)

    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)):
            if signal.getsignal(number) == signal.SIG_DFL:  # not Ctrl-C, which Python handles
                signal.signal(number, stop)


def _describe_sweep(config: DictConfig) -> SweepRecord:
    """The content of sweep.json."""
    hydra_node, settings = config.hydra, config.sweep
    launcher: Any = OmegaConf.to_container(hydra_node.launcher, resolve=True)
    width = settings.jobs or jobs_at_once(launcher["_target_"], launcher.get("n_jobs"), ranks.cores())
    threads = config.device.threads or launcher.get("cpus_per_task") or max(1, ranks.cores() // max(1, width))
    params = [f"{key}={value}" for key, value in (hydra_node.sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*params, *hydra_node.overrides.task])
    return SweepRecord(
        command=list(hydra_node.overrides.task),
        fixed=[o.get_key_element() for o in overrides if not o.is_sweep_override()],
        key=_command_key(hydra_node.overrides.task, hydra_node.sweeper),
        total=_count_jobs(hydra_node.sweeper, overrides),
        width=width,
        threads=threads,
        again=settings.again,
        files=yaml_digests(_settings_folders(hydra_node.runtime)),
    )


def jobs_at_once(launcher: str, jobs: int | None, cores: int) -> int:
    """Jobs that a launcher of Hydra runs at once on this machine; 0 where the launcher alone decides.

    joblib's `n_jobs` is read as joblib reads it (-1: all cores); Hydra's own runs one after another. Others start all
    jobs at once (submitit's local executor) or as many as there are cores (Ray on one node): as many as there are
    cores. Slurm knows what it has: a cluster gives each job its cores.
    """
    if "Basic" in launcher:
        return 1
    if "Slurm" in launcher:
        return 0
    if jobs is not None:
        return max(1, jobs if jobs > 0 else cores + 1 + jobs)
    return cores


def _count_jobs(sweeper: DictConfig, overrides: list[Override]) -> int | None:
    """How many jobs the sweep has; None where its sweeper decides as it goes."""
    if "n_trials" in sweeper:
        return sweeper.n_trials
    swept = {o.get_key_element(): o for o in overrides if o.is_sweep_override()}.values()
    if not all(o.is_discrete_sweep() for o in swept) or any(o.value_type == ValueType.GLOB_CHOICE_SWEEP for o in swept):
        return None
    return math.prod(sum(1 for _ in o.sweep_string_iterator()) for o in swept)


def _settings_folders(runtime: Any) -> tuple[Path, ...]:
    """The folders that settings are composed from, Hydra's own aside."""
    files = [Path(s.path) for s in runtime.config_sources if s.schema == "file"]
    return (*files, conf_folder()) if not files or PACKAGED.is_dir() else tuple(files)


def run_job(composed: DictConfig) -> float:
    """Run one job of a sweep in a process of its own; return the number for the sweeper."""
    from metarun.jobs.sweep import job

    hydra_node = HydraConfig.get()
    sources = hydra_node.runtime.config_sources
    flags = [part for s in sources if s.provider == "command-line" for part in ("--config-dir", s.path)]
    passed = [o for o in hydra_node.overrides.hydra if o.startswith(PASSED_ON)]
    return job.run_job(
        job.Job(
            folder=Path(hydra_node.runtime.output_dir),
            sweep=Path(hydra_node.sweep.dir),
            key=_run_key(composed),
            number=hydra_node.job.num,
            overrides=(*hydra_node.overrides.task, *passed),
            flags=tuple(flags),
            settings=_settings_folders(hydra_node.runtime),
        )
    )
