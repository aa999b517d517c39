"""The command line in several processes of torchrun: rank 0 writes to the run folder and prints, the others do not."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, flag_override

from metarun.cli.compose import compose_options
from metarun.compute.portable import pin_arithmetic
from metarun.config.schema import PORTABLE, Config
from metarun.storage import ranks
from metarun.storage.progress import print_notice

SILENT = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"none": {"class": "logging.NullHandler"}},
    "root": {"handlers": ["none"]},
}


class OneFolder(Callback):
    """Keep Hydra from making folders and files in any process but the first."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        if ranks.rank() > 0:
            with flag_override(config.hydra, ["readonly", "struct"], False):
                config.hydra.run.dir = "."
                config.hydra.output_subdir = None
                config.hydra.job_logging = SILENT


def remember_run(config: Config, folder: str) -> None:
    """Have the ranks that torchrun may start in place of these find the run folder."""
    if config.device.deterministic == PORTABLE:  # before torch is loaded
        pin_arithmetic()
    from metarun.compute.distributed import remember_folder

    remember_folder(folder)


def continue_run(arguments: list[str]) -> list[str]:
    """The arguments of ranks that torchrun has started again: rank 0 continues the run that those before had begun.

    The other ranks take the settings of rank 0 in any case.
    """
    if ranks.rank() > 0 or any(argument.startswith(("resume=", "job=")) for argument in arguments):
        return arguments
    if compose_options(arguments).device.deterministic == PORTABLE:  # before torch is loaded
        pin_arithmetic()
    from metarun.compute.distributed import recall_folder

    folder = recall_folder()
    if not (folder and (Path(folder) / "config.yaml").is_file()):
        return arguments
    print_notice(f"torchrun has started the ranks again ({ranks.restarts()}): continues {folder}")
    return [*arguments, f"resume={folder}"]


def end_process(code: Any) -> NoReturn:
    """End one of several processes at once.

    The threads of torch.distributed may abort an interpreter that shuts down in the ordinary way (torch 2.13:
    "terminate called without an active exception").
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
