"""The command line: compose with Hydra, run the job, return the sweeper's number. The only file that imports hydra.

torch is imported inside the job, so that --help, --cfg and completion stay quick.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from metarun.cli import crash_report, experiments, sweep, torchrun
from metarun.cli.crash_report import TRACEBACK
from metarun.cli.usage_errors import one_line
from metarun.config.catalogue import GROUPS, PACKAGED, conf_folder
from metarun.config.from_run import add_run_choices, reuse_settings
from metarun.config.schema import Config, refuse_values_for_groups
from metarun.errors import UserError
from metarun.jobs.sweep.child import end_with_parent
from metarun.storage import ranks
from metarun.storage.locks import owner
from metarun.storage.run_folder import RunFolder, new_folder

CONFIG_PATH = "pkg://metarun.conf" if PACKAGED.is_dir() else str(conf_folder())
STOPPED_BY = 128  # and the signal's number: 130 after Ctrl-C, 143 after SIGTERM
CLOSED_PIPE = 141


def _itself(store: ConfigStore, memo: dict[int, Any]) -> ConfigStore:
    """The copy of the store of schemas: there is one in a process, and what it gives out are copies anyway.

    Hydra copies all sources of settings whenever it lists a group, a hundred times for --help, and the store with them.
    """
    return store


ConfigStore.__deepcopy__ = _itself  # type: ignore[attr-defined]

SCHEMA = OmegaConf.structured(Config)
OmegaConf.set_struct(SCHEMA.reg, False)  # reg.weight belongs to whichever regularizer is chosen; terms.py checks it
ConfigStore.instance().store(name="schema", node=SCHEMA)
experiments.register()


def new_run_folder(resume: str | None, job: str, algo: str, data: str, run: str | None, analysis: str | None) -> str:
    """outputs/DATE/TIME-ALGO-DATA; the old folder for `resume`, one
    inside of the run for its analysis."""
    analysed = run if job == "analyze" and analysis else None
    if resume or analysed:
        RunFolder(Path(resume or analysed or "")).read_config()  # before Hydra writes anything there
        return resume or f"{analysed}/analyses/{analysis}"
    now = datetime.now()
    what = f"{algo}-{data}" if job == "train" else job
    return str(new_folder(Path("outputs") / f"{now:%Y-%m-%d}", f"{now:%H-%M-%S}-{what}"))


def hydra_subfolder(resume: str | None, folder: str) -> str | None:
    """Where Hydra leaves its own files: nowhere if the folder is at work in another process, which this job will learn
    only later, or if the run has ended, of which nothing is to be touched."""
    if owner(Path(folder)) or (resume and RunFolder(Path(resume)).has_ended()):
        return None
    return ".hydra/resumed" if resume else ".hydra"


OmegaConf.register_new_resolver("metarun.folder", new_run_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver("metarun.groups", experiments.list_groups, replace=True)
OmegaConf.register_new_resolver("metarun.subdir", hydra_subfolder, replace=True)


@hydra.main(version_base="1.3", config_path=CONFIG_PATH, config_name="config")
def job(composed: DictConfig) -> float:
    """Run one job; the number is for a sweeper to minimise."""
    runtime = HydraConfig.get()
    if runtime.mode == RunMode.MULTIRUN:
        return sweep.run_job(composed)
    try:
        typed = _typed(composed, runtime.runtime.choices)
        config = of_first_rank(lambda: reuse_settings(typed, list(runtime.overrides.task), compose))
        from metarun.jobs import run

        result = run(config, runtime.runtime.output_dir)
    except Exception as error:  # here, where the run folder is known, and before Hydra announces it
        leave(error)
    if result.status == "interrupted":
        sys.exit(STOPPED_BY + (result.signal or signal.SIGINT))
    if result.status == "diverged":
        leave(UserError(f"diverged: {result.summary['reason']}"))
    return result.objective


def of_first_rank(function: Callable[[], Config]) -> Config:
    """The call's value; of several processes the first one reads files, and the others are told."""
    if ranks.size() == 1:
        return function()
    from metarun.compute.distributed import connect_processes

    return connect_processes().on_first(function)


def leave(error: Exception) -> NoReturn:
    """End in one line, on a user's mistake with code 2, on ours with 1; with the traceback where that is asked for."""
    message = one_line(error)
    if ranks.size() > 1:
        from metarun.compute.distributed import leave_together

        if os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        leave_together(error, message)
    if os.environ.get(TRACEBACK):
        raise error
    if message is None:
        print(f"metarun: {crash_report.told(error, _folder())}", file=sys.stderr)
        sys.exit(crash_report.CODE)
    print(f"metarun: {message}", file=sys.stderr)
    sys.exit(2)


def _folder() -> Path | None:
    """The run folder, once Hydra has made one."""
    with contextlib.suppress(Exception):  # before there is one
        known = HydraConfig.get()
        return Path(known.runtime.output_dir) if known.mode == RunMode.RUN else None
    return None


def compose(overrides: Sequence[str]) -> Config:
    """The settings that these overrides give, as the command line would compose them."""
    if GlobalHydra.instance().is_initialized():
        return _compose(overrides)
    path = CONFIG_PATH.removeprefix("pkg://")
    start = hydra.initialize_config_module if path != CONFIG_PATH else hydra.initialize_config_dir
    with start(path, version_base="1.3"):
        return _compose(overrides)


def _compose(overrides: Sequence[str]) -> Config:
    composed = hydra.compose("config", list(overrides), return_hydra_config=True)
    choices = composed.hydra.runtime.choices
    OmegaConf.set_struct(composed, False)
    composed.pop("hydra")
    return _typed(composed, choices)


def _typed(composed: DictConfig, choices: Any) -> Config:
    config: Any = OmegaConf.to_object(composed)
    refuse_values_for_groups(config)
    config.choices = {group: choices[group] for group in GROUPS if choices.get(group)}
    if "reg" not in config.choices:  # Hydra does not say what reg=[l1,l2] chose
        config.choices["reg"] = f"[{','.join(config.reg)}]"
    return config


def main() -> None:
    """The console script: a user's mistake ends in one line on stderr and exit code 2."""
    try:
        _run()
    except SystemExit as ending:
        if ranks.size() > 1:
            torchrun.end(ending.code)
        raise


def _run() -> NoReturn:
    if crash_report.wanted():
        os.environ[TRACEBACK] = "1"
    else:
        os.environ.pop(TRACEBACK, None)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors and exits itself
    logging.raiseExceptions = False  # a log that cannot be written is no reason for a page of traceback each time
    end_with_parent()
    torchrun.be_quiet()
    try:
        sys.argv[1:] = add_run_choices(sys.argv[1:])
        job()
    except KeyboardInterrupt as error:
        if sweep.SITTINGS:
            print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(STOPPED_BY + getattr(error, "number", signal.SIGINT))
    except BrokenPipeError:  # whoever read the output has seen enough, as `metarun --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED_PIPE)
    except Exception as error:
        leave(error)
    sys.exit(sweep.exit_code())


if __name__ == "__main__":
    main()
