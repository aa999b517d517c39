"""TensorBoard event files in the run folder (`logger=tensorboard`, extra `metarun[tensorboard]`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metarun.errors import SettingError
from metarun.storage.loggers import Record, Sink


class TensorBoard(Sink):
    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SettingError(
                "logger", "tensorboard", "is not installed; pip install 'metarun[tensorboard]'"
            ) from error
        self.open = lambda: SummaryWriter(str(folder / "tensorboard"))
        self.writer: Any = None

    def start(self, run: dict[str, Any]) -> None:
        self.writer = self.open()

    def log(self, record: Record) -> None:
        for name, value in {**record.values, **record.timing}.items():
            self.writer.add_scalar(f"{record.kind}/{name}", value, record.step)

    def note(self, message: str) -> None:
        self.writer.add_text("notes", message)

    def finish(self, summary: dict[str, Any]) -> None:
        self.writer.close()
