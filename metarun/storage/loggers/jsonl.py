"""metrics.jsonl and timing.jsonl: one line per record, written whole as soon as it is logged."""

from __future__ import annotations

import json
from io import FileIO
from pathlib import Path
from typing import Any

from metarun.storage.atomic import append, name_file_in_errors
from metarun.storage.json_values import replace_nonfinite
from metarun.storage.loggers import Record, Sink


class JsonLines(Sink):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, FileIO] = {}

    def start(self, run: dict[str, Any]) -> None:
        for name in ("metrics", "timing"):
            with name_file_in_errors(path := self._path(name)):
                self.files[name] = FileIO(path, "a")

    def log(self, record: Record) -> None:
        for name, values in (("metrics", record.values), ("timing", record.timing)):
            line = {"kind": record.kind, "step": record.step, **values}
            append(self.files[name], self._path(name), (json.dumps(replace_nonfinite(line)) + "\n").encode())

    def finish(self, summary: dict[str, Any]) -> None:
        for file in self.files.values():
            file.close()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"
