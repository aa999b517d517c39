"""The command line in several processes of torchrun: rank 0 writes to the run folder and prints, the others do not."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, NoReturn

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, flag_override

from metarun.storage import ranks

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


def end_process(code: Any) -> NoReturn:
    """End one of several processes at once.

    The threads of torch.distributed may abort an interpreter that shuts down in the ordinary way (torch 2.13:
    "terminate called without an active exception").
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
