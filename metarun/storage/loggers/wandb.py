"""Weights & Biases (`logger=wandb`): online when logged in, otherwise offline in the run folder, never asking."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metarun.errors import SettingError
from metarun.storage.loggers import Record, Sink
from metarun.storage.status import SUCCEEDED


class WandB(Sink):
    def __init__(self, folder: Path, project: str, notify: Callable[[str], None]) -> None:
        self.folder, self.project, self.notify = folder, project, notify
        self.run: Any = None

    def start(self, run: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise SettingError("logger", "wandb", "is not installed; pip install wandb") from error
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if _has_account(wandb) else "offline")
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
        stored = Path(self.run.dir).parent
        offline = stored.name.startswith("offline-run")
        url = None if offline else self.run.url
        self.run.finish(exit_code=0 if summary["status"] in SUCCEEDED else 1)
        if offline:
            self.notify(f"wandb: stored offline; to upload it: wandb sync {stored}")
        elif url:
            self.notify(f"wandb: {url}")


def _has_account(wandb: Any) -> bool:
    """Whether wandb is logged in, without asking the user or its server."""
    if "prompt" in inspect.signature(wandb.login).parameters:
        return wandb.login(prompt=False, verify=False)
    return bool(wandb.api.api_key)  # earlier versions
