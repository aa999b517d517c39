"""The command line: compose with Hydra, run the job, end with an exit code.

torch is imported inside the job, so that --help, --cfg and completion stay quick.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

import metarun
from metarun import jobs
from metarun.cli import cache, sweep, torchrun
from metarun.cli.compose import CONFIG_PATH, compose_options, to_config
from metarun.cli.compose_once import compose_once
from metarun.cli.crash_report import TRACEBACK, report_crash, tracebacks_wanted
from metarun.cli.explain import explain
from metarun.cli.overrides import read_arguments
from metarun.cli.shell_completion import offer_values
from metarun.cli.usage_errors import describe_usage_error
from metarun.compute.portable import pin_arithmetic
from metarun.config.from_run import SEARCH_PATH, read_settings, reuse_settings
from metarun.config.schema import PORTABLE, Config
from metarun.errors import UserError
from metarun.jobs.sweep.child import end_with_parent
from metarun.storage import ranks
from metarun.storage.run_folder import remove_refused

STOPPED_BY = 128  # and the signal's number: 130 after Ctrl-C, 143 after SIGTERM
CLOSED_PIPE = 141


def main() -> None:
    """The console script: a user's mistake ends in one line on stderr and exit code 2."""
    try:
        set_up_process()
        sys.exit(run_command())
    except SystemExit as ending:
        if ranks.size() > 1:
            torchrun.end_process(ending.code)
        raise


def set_up_process() -> None:
    """Settle how errors are shown, and what this process is to others."""
    if tracebacks_wanted():
        os.environ[TRACEBACK] = "1"
    else:
        os.environ.pop(TRACEBACK, None)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors and exits itself
    logging.raiseExceptions = False  # a log that cannot be written is no reason for a page of traceback each time
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is loaded
        # Threads that wait would spin, and keep the core from the one they wait for if other programs run too. A short
        # while of it costs nothing, and saves the sleep between two loops.
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    end_with_parent()
    offer_values()
    compose_once()
    if ranks.rank() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
        warnings.simplefilter("ignore")


def run_command() -> int:
    """Run what the command line asks for; return the exit code."""
    try:
        if len(sys.argv) == 3 and sys.argv[1] in ("help", "--help", "-h"):
            print(explain(sys.argv[2]))
            return 0
        if sys.argv[1:2] == ["cache"]:
            cache.run(sys.argv[2:])
            return 0
        if sys.argv[1:] == ["help"]:
            sys.argv[1:] = ["--help"]
        sys.argv[1:] = read_arguments(sys.argv[1:])
        if "--version" in sys.argv[1:]:  # Hydra would print its own
            print(f"metarun {metarun.__version__}")
            return 0
        run_job()
    except KeyboardInterrupt as error:
        if sweep.SITTINGS:
            sweep.SITTINGS[-1].overview.stop()
            print("stopped; the same command goes on from here", file=sys.stderr)
        return int(STOPPED_BY + getattr(error, "number", signal.SIGINT))
    except BrokenPipeError:
        exit_with_closed_pipe()
    except Exception as error:
        exit_with_error(error)
    return sweep.SITTINGS[-1].exit_code if sweep.SITTINGS else 0


@hydra.main(version_base="1.3", config_path=CONFIG_PATH, config_name="config")
def run_job(composed: DictConfig) -> float:
    """Run one job; return the number for a sweeper to minimise."""
    runtime = HydraConfig.get()
    if runtime.mode == RunMode.MULTIRUN:
        return sweep.run_job(composed)
    try:
        overrides = [o for o in runtime.overrides.hydra if o.startswith(SEARCH_PATH)]
        overrides += torchrun.select_overrides(runtime.overrides.task, composed.resume)
        config = choose_settings(to_config(composed, runtime.runtime.choices), overrides)
        result = jobs.run(config, runtime.runtime.output_dir)
    except BrokenPipeError:
        exit_with_closed_pipe()
    except Exception as error:  # here, where the run folder is known, and before Hydra prints it
        exit_with_error(error)
    if result.status == "interrupted":
        sys.exit(STOPPED_BY + (result.signal or signal.SIGINT))
    if result.status == "diverged":
        exit_with_error(UserError(f"diverged: {result.summary['reason']}"))
    return result.objective


def choose_settings(config: Config, overrides: list[str]) -> Config:
    """The composed settings, or those of the run that they name. Of several processes, the first one reads files."""
    if ranks.size() == 1:
        return reuse_settings(config, overrides, compose_options)
    if PORTABLE in (config.device.deterministic, read_determinism(config, overrides)):  # before torch is loaded
        pin_arithmetic()
    from metarun.compute.distributed import connect_processes

    return connect_processes().on_first(lambda: reuse_settings(config, overrides, compose_options))


def read_determinism(config: Config, overrides: list[str]) -> Any:
    """device.deterministic of the run that the settings name, where its folder can be read and the command does not
    set it."""
    source = config.resume or config.run
    if source and not any(o.startswith("device.deterministic=") for o in overrides):
        with contextlib.suppress(UserError):  # which the first process reports
            device = read_settings(source).get("device")
            return device.get("deterministic") if isinstance(device, dict) else None
    return None


def exit_with_closed_pipe() -> NoReturn:
    """End without a message: the reader of the output has closed it, as in `metarun --help | head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(CLOSED_PIPE)


def exit_with_error(error: Exception) -> NoReturn:
    """End in one line, with exit code 2 for a user's mistake and 1 for ours, or with the traceback if it is wanted."""
    message = describe_usage_error(error)
    for sitting in sweep.SITTINGS:
        sitting.overview.stop()
    if ranks.size() > 1:
        from metarun.compute.distributed import leave_together

        if os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        leave_together(error, message)
    if os.environ.get(TRACEBACK):
        raise error
    folder, given = None, True
    with contextlib.suppress(Exception):  # before Hydra has made one
        known = HydraConfig.get()
        folder = Path(known.runtime.output_dir) if known.mode == RunMode.RUN else None
        given = any(o.startswith("hydra.run.dir=") for o in known.overrides.hydra)
    if message is None:
        report_crash("metarun", error, folder)
    if folder and not given:  # made for this command
        remove_refused(folder)
    print(f"metarun: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
