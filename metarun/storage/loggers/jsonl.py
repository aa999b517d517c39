"""metrics.jsonl and timing.jsonl: one line per record, written whole as soon as it is logged.

They also show whether another process writes to the folder where locks do not hold, as on some network file systems:
the files then do not end where this process left them. The first one to see it stops.
"""

from __future__ import annotations

import json
import os
from io import FileIO
from pathlib import Path
from typing import Any

from metarun.storage.atomic import append, check_sole_writer, force_to_disk, name_file_in_errors
from metarun.storage.json_values import replace_nonfinite
from metarun.storage.loggers import Record, Sink


class JsonLines(Sink):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, FileIO] = {}
        self.ends: dict[str, int] = {}  # the bytes of each file

    def start(self, run: dict[str, Any]) -> None:
        for name in ("metrics", "timing"):
            with name_file_in_errors(path := self._path(name)):
                self.files[name] = FileIO(path, "a")
                self.ends[name] = os.fstat(self.files[name].fileno()).st_size

    def log(self, record: Record) -> None:
        for name, values in (("metrics", record.values), ("timing", record.timing)):
            line = {"kind": record.kind, "step": record.step, **values}
            written = (json.dumps(replace_nonfinite(line)) + "\n").encode()
            self.ends[name] = append(self.files[name], self._path(name), written, self.ends[name])

    def sync(self) -> None:
        for name, file in self.files.items():
            check_sole_writer(file, self._path(name), self.ends[name])
            force_to_disk(file, self._path(name))

    def finish(self, summary: dict[str, Any]) -> None:
        for name, file in self.files.items():
            with name_file_in_errors(self._path(name)):
                file.close()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"
