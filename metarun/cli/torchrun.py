"""The command line in processes of torchrun: rank 0 writes to the run folder and prints, the others do not. If torchrun
starts all of them again, with the same command, they continue the run that they began."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override

from metarun.errors import UserError
from metarun.jobs.sweep.child import TRUST
from metarun.storage import launches, ranks
from metarun.storage.progress import print_notice

SILENT = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"none": {"class": "logging.NullHandler"}},
    "root": {"handlers": ["none"]},
}


class OneFolder(Callback):
    """Keep Hydra from making folders and files in any process but the first, and all attempts in one folder."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        if ranks.rank() > 0:
            with flag_override(config.hydra, ["readonly", "struct"], False):
                config.hydra.run.dir = "."
                config.hydra.output_subdir = None
                config.hydra.job_logging = SILENT
        elif config.job == "train" and not config.resume and launches.launch_name():
            continue_attempt(config)


def continue_attempt(config: DictConfig) -> None:
    """Let the settings of a training name the folder of the attempt before, if there was one, and resume its run."""
    HydraConfig.instance().set_config(config)  # which the names of folders refer to; Hydra does it later
    unnamed = "${metarun.folder:" in str(OmegaConf.to_container(config.hydra.run))
    begun = launches.find_own(Path("outputs")) if unnamed else None
    folder = begun or Path(config.hydra.run.dir)
    if unnamed and not begun:  # at once: a kill may come before the job begins
        with contextlib.suppress(UserError):  # which the job meets as well
            launches.mark(folder)
    resumes = launches.is_own(folder) and (folder / "config.yaml").exists()
    if resumes:
        print_notice(f"{folder}: torchrun has started the ranks again; this run continues")
    with flag_override(config, "readonly", False), flag_override(config.hydra, "readonly", False):
        config.hydra.run.dir = str(folder)
        config.resume = str(folder) if resumes else None


def select_overrides(overrides: Sequence[str], resume: str | None) -> list[str]:
    """Those that count where a run is resumed without a `resume=` among them: its folder has all other settings."""
    if not resume or any(o.startswith("resume=") for o in overrides):
        return [*overrides]
    return [o for o in overrides if o.lstrip("+").startswith(TRUST)]


def end_process(code: Any) -> NoReturn:
    """End one of several processes at once.

    The threads of torch.distributed may abort an interpreter that shuts down in the ordinary way (torch 2.13:
    "terminate called without an active exception").
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
