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
import math
import os
from pathlib import Path
from typing import Any

import yaml

from metarun import foreign
from metarun.config import Config
from metarun.errors import SettingError, UserError

KINDS = ("train", "val", "probe")
"""Of the records that a resumed run keeps; its test is done again."""


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "checkpoints" / "last.pt"
        self.best = path / "checkpoints" / "best.pt"

    def create(self, config: dict[str, Any]) -> None:
        """Make the folder and store the settings in it."""
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._replace("config.yaml", yaml.safe_dump(config, sort_keys=False))
        except OSError as error:
            raise UserError(f"hydra.run.dir={self.path}: cannot be written ({error.strerror})") from error

    def config(self) -> dict[str, Any]:
        """The stored settings; `UserError` when this is no run folder, or leads out of itself."""
        try:
            stored, why = foreign.settings(self.path / "config.yaml"), ""
        except foreign.Refused as error:
            stored, why = None, f": it {error.strerror}"
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            stored, why = None, ""
        if not isinstance(stored, dict):
            raise UserError(f"{self.path}: is no run folder of metarun (it has no readable config.yaml{why})")
        foreign.confine(self.path)
        return stored

    def write_json(self, name: str, values: Any) -> None:
        self._replace(name, json.dumps(finite(values), indent=2) + "\n")

    def read_summary(self) -> dict[str, Any]:
        try:
            stored = json.loads(foreign.text(self.path / "summary.json"))
        except (OSError, ValueError, RecursionError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def read_records(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The lines of a record file, once `forget_after` has dropped those that are none."""
        path = self.path / name
        return [json.loads(line) for line in foreign.text(path).splitlines()] if path.exists() else []

    def forget_after(self, step: int) -> None:
        """Drop records of what will be done again (later steps, the test), and a line cut off in writing."""
        for name in ("metrics.jsonl", "timing.jsonl"):
            path = self.path / name
            if path.exists():
                lines = foreign.text(path, errors="replace").splitlines(True)
                kept = [line for line in lines if _kept(line, step)]
                self._replace(name, "".join(kept))

    def _replace(self, name: str, text: str) -> None:
        temporary = self.path / (name + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.path / name)


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


def source_run(config: Config) -> RunFolder:
    """The run that `run=` names; `SettingError` when there is none."""
    if not config.run:
        raise SettingError(
            "run", None, f"job={config.job} needs a run's folder, as run=outputs/DATE/TIME-maml-sinusoid"
        )
    return RunFolder(Path(config.run))


def _kept(line: str, step: int) -> bool:
    try:
        record = json.loads(line)
        whole = line.endswith("\n") and record["kind"] in KINDS and all(map(_is_number, record.values()))
        return whole and type(record["step"]) is int and 0 <= record["step"] <= step
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _is_number(value: Any) -> bool:
    """What a record of metarun holds: numbers, null for one that is not finite, its kind, and tables of these."""
    if isinstance(value, (list, dict)):
        items = value.values() if isinstance(value, dict) else value
        return all(item is None or isinstance(item, (int, float)) for item in items)
    return value is None or value in KINDS or isinstance(value, (int, float))


def finite(values: Any) -> Any:
    """NaN and infinity become null: JSON has no word for them."""
    if isinstance(values, dict):
        return {str(k): finite(v) for k, v in values.items()}
    if isinstance(values, (list, tuple)):
        return [finite(v) for v in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
