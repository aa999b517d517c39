"""metrics.jsonl and timing.jsonl: one line a record, flushed as it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

from metarun.record import finite
from metarun.sinks import Record


class JsonLines:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, TextIO] = {}

    def start(self, run: dict[str, Any]) -> None:
        for name in ("metrics", "timing"):
            self.files[name] = (self.folder / f"{name}.jsonl").open("a", encoding="utf-8")

    def progress(self, step: int) -> None:
        """Nothing to write."""

    def log(self, record: Record) -> None:
        for name, values in (("metrics", record.values), ("timing", record.timing)):
            line = {"kind": record.kind, "step": record.step, **values}
            self.files[name].write(json.dumps(finite(line)) + "\n")
            self.files[name].flush()

    def note(self, message: str) -> None:
        """Notes are in metarun.log."""

    def finish(self, summary: dict[str, Any]) -> None:
        for file in self.files.values():
            file.close()
