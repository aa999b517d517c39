"""Weights & Biases (`logger=wandb`): online when logged in, otherwise offline in the run folder, never asking."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from metarun.storage.loggers import Record, Sink
from metarun.storage.status import SUCCEEDED


class WandB(Sink):
    def __init__(self, folder: Path, project: str) -> None:
        self.folder, self.project = folder, project
        self.run: Any = None

    def start(self, run: dict[str, Any]) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        self.run = wandb.init(
            project=self.project,
            name=run["name"],
            dir=str(self.folder),
            config=run["config"],
            mode=mode,
            settings=wandb.Settings(silent=True, init_timeout=20),
        )

    def log(self, record: Record) -> None:
        values = {**record.values, **record.timing}
        self.run.log({f"{record.kind}/{name}": value for name, value in values.items()}, step=record.step)

    def finish(self, summary: dict[str, Any]) -> None:
        self.run.summary.update({k: v for k, v in summary.items() if isinstance(v, (int, float, str))})
        self.run.finish(exit_code=0 if summary["status"] in SUCCEEDED else 1)
