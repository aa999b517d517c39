"""The run folder: what a run leaves behind, and how another job reads it again.

config.yaml     all settings, resolved            split.json       the class names of each split
metrics.jsonl   every number of training and validation, the same bytes for the same settings and machine
timing.jsonl    what a clock or the memory said at the same steps (never the same twice)
test.json       each test task's figure after each adaptation step
summary.json    the result and all that belongs beside it; written at the start too, and when a run stops
checkpoints/    last.pt, best.pt, and their predecessors
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from metarun.errors import UserError, one_line
from metarun.storage import atomic, untrusted
from metarun.storage.atomic import name_file_in_errors
from metarun.storage.json_values import replace_nonfinite
from metarun.storage.status import SUCCEEDED

NEEDED = ("algo", "data", "train")
"""Without these a file of settings is none of a run."""

KINDS = ("train", "val", "probe")
"""Of the records that a resumed run keeps; its test is done again."""


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "checkpoints" / "last.pt"
        self.best = path / "checkpoints" / "best.pt"

    def begun(self) -> bool:
        """Whether there is a checkpoint; a kill may have come when only the predecessor was there."""
        return self.last.exists() or previous_checkpoint(self.last).exists()

    def create(self, config: dict[str, Any]) -> None:
        """Make the folder and store the settings in it."""
        with name_file_in_errors(self.path):
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        self._replace("config.yaml", yaml.safe_dump(config, sort_keys=False))

    def config(self) -> dict[str, Any]:
        """The stored settings; `UserError` when this is no run folder, or leads out of itself."""
        path = self.path / "config.yaml"
        try:
            stored = untrusted.settings(path)
        except untrusted.Refused as error:
            raise UserError(f"{path}: cannot be read: it {error.strerror}") from error
        except FileNotFoundError:
            raise UserError(f"{self.path}: is no run folder of metarun (it has no config.yaml)") from None
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise UserError(f"{path}: cannot be read ({one_line(error)[:100]})") from error
        lacking = [key for key in NEEDED if not isinstance(stored, dict) or not isinstance(stored.get(key), dict)]
        if lacking:
            raise UserError(f"{path}: is damaged, or not of metarun (it lacks the settings of {', '.join(lacking)})")
        untrusted.confine(self.path)
        return stored

    def write_json(self, name: str, values: Any) -> None:
        self._replace(name, json.dumps(replace_nonfinite(values), indent=2) + "\n")

    def read_summary(self) -> dict[str, Any]:
        try:
            stored = json.loads(untrusted.text(self.path / "summary.json"))
        except (OSError, ValueError, RecursionError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def ended(self) -> bool:
        """Whether the run came to its end and was tested."""
        return self.read_summary().get("status") in SUCCEEDED and (self.path / "test.json").exists()

    def read_records(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The lines of a record file; what is no record is left out."""
        return [record for line in self._lines(name) if (record := _record(line))]

    def forget_after(self, step: int) -> int:
        """Drop records of what will be done again (later steps, the test), and a line cut off in writing. Returns how
        many lines before the last of metrics.jsonl were no records: these are damaged, and lost."""
        damaged = sum(_record(line) is None for line in self._lines("metrics.jsonl")[:-1])
        for name in ("metrics.jsonl", "timing.jsonl"):
            lines = self._lines(name)
            kept = [line for line in lines if line.endswith("\n") and _kept(_record(line), step)]
            if kept != lines:
                self._replace(name, "".join(kept))
        return damaged

    def _lines(self, name: str) -> list[str]:
        path = self.path / name
        if not path.exists():
            return []
        # Not splitlines: a damaged line may hold what Unicode takes for the end of one.
        return re.findall(r"[^\n]*\n|[^\n]+", untrusted.text(path, errors="replace"))

    def _replace(self, name: str, text: str) -> None:
        atomic.replace(self.path / name, text.encode())


def previous_checkpoint(path: Path) -> Path:
    """The predecessor of a checkpoint."""
    return path.with_name(path.name + ".previous")


def new_folder(parent: Path, name: str) -> Path:
    """A folder that was not there: NAME, NAME-2, ...; made here so that no other process gets the same."""
    parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1000):
        folder = parent / (name + (f"-{attempt + 1}" if attempt else ""))
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise UserError(f"{parent}: cannot make a new folder {name}")


def _record(line: str) -> dict[str, Any] | None:
    """What the line says, if it is a record."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("kind") not in (*KINDS, "test"):
        return None
    numbers = all(_is_number(value) for key, value in found.items() if key != "kind")
    return found if numbers and type(found.get("step")) is int and found["step"] >= 0 else None


def _kept(record: dict[str, Any] | None, step: int) -> bool:
    return record is not None and record["step"] <= step and record["kind"] in KINDS


def _is_number(value: Any) -> bool:
    """What a record of metarun holds: numbers, null for one that is not finite, its kind, and tables of these."""
    if isinstance(value, (list, dict)):
        items = value.values() if isinstance(value, dict) else value
        return all(item is None or isinstance(item, (int, float)) for item in items)
    return value is None or isinstance(value, (int, float))
