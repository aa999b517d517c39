"""The run folder: the files of a run, written by one job and read by others; and the cache folder beside all runs.

config.yaml     all settings, resolved            split.json       the class names of each split
metrics.jsonl   every metric of training and validation, the same bytes for the same settings and machine
timing.jsonl    times and memory at the same steps (never the same twice)
test.json       each test task's metric after each adaptation step
tasks.json      a few test tasks as the pictures of the report need them; functions.json of learners of distributions
details.csv     with test.details=true, the prediction for every query of the test
summary.json    the result and its conditions; written at the start too, and when a run stops
checkpoints/    last.pt, best.pt, and their predecessors; with train.keep_weights=true step-N.pt of each validation
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from metarun.errors import UserError, one_line
from metarun.storage import atomic, untrusted
from metarun.storage.atomic import name_file_in_errors
from metarun.storage.json_values import replace_nonfinite
from metarun.storage.status import SUCCEEDED
from metarun.storage.text import escape_formula

NEEDED = ("algo", "data", "train")  # in the settings of any run
KINDS = ("train", "val", "probe")  # of records that a resumed run keeps; it repeats its test


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "checkpoints" / "last.pt"
        self.best = path / "checkpoints" / "best.pt"

    def weights_of(self, step: int) -> Path:
        """The checkpoint of a validation, where weights are kept."""
        return self.path / "checkpoints" / f"step-{step}.pt"

    def kept_steps(self) -> list[int]:
        """The outer steps whose weights are kept, ascending."""
        names = (re.fullmatch(r"step-(\d{1,18})\.pt", path.name) for path in self.last.parent.glob("step-*.pt"))
        return sorted(int(found[1]) for found in names if found)

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint; after a kill this may be the predecessor alone."""
        return self.last.exists() or previous_checkpoint(self.last).exists()

    def create(self, config: dict[str, Any]) -> None:
        """Make the folder and write the settings to it."""
        with name_file_in_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._replace("config.yaml", yaml.safe_dump(config, sort_keys=False))

    def read_config(self) -> dict[str, Any]:
        """Return the stored settings. Raise `UserError` if this is no run folder, or has links that lead out of it."""
        path = self.path / "config.yaml"
        try:
            stored = untrusted.read_yaml(path)
        except untrusted.Refused as error:
            raise UserError(f"{path}: cannot be read: it {error.strerror}") from error
        except FileNotFoundError:
            raise UserError(f"{self.path}: is not a run folder (it has no config.yaml)") from None
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise UserError(f"{path}: cannot be read ({one_line(error)[:100]})") from error
        lacking = [key for key in NEEDED if not isinstance(stored, dict) or not isinstance(stored.get(key), dict)]
        if lacking:
            raise UserError(f"{path}: is damaged, or not of metarun (it lacks the settings of {', '.join(lacking)})")
        untrusted.check_links(self.path)
        return stored

    def write_json(self, name: str, values: Any) -> None:
        """Write a JSON file, numbers that are not finite as null."""
        self._replace(name, json.dumps(replace_nonfinite(values), indent=2) + "\n")

    def write_table(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Write a csv file of rows with the same keys, texts by `escape_formula`: names of classes, columns and files
        may be of others. What is no Unicode in the name of a file becomes \\udcHH."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for row in rows:
            if not text.tell():
                writer.writerow(map(escape_formula, row))
            writer.writerow(map(escape_formula, row.values()))
        self._replace(name, text.getvalue().encode("utf-8", "backslashreplace").decode())

    def read_summary(self) -> dict[str, Any]:
        """Return summary.json, or {} if it cannot be read."""
        try:
            stored = json.loads(untrusted.read_text(self.path / "summary.json"))
        except (OSError, ValueError, RecursionError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def has_ended(self) -> bool:
        """Whether the run reached its end and was tested."""
        return self.read_summary().get("status") in SUCCEEDED and (self.path / "test.json").exists()

    def read_records(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """Return the records of a file; damaged lines are left out."""
        return [record for line in self._lines(name) if (record := _parse_record(line))]

    def drop_after(self, step: int) -> int:
        """Drop the records of what a resumed run repeats (later steps, the test), and a line cut off in writing.

        Returns how many lines before the last of metrics.jsonl were damaged: their records are lost.
        """
        damaged = sum(_parse_record(line) is None for line in self._lines("metrics.jsonl")[:-1])
        for name in ("metrics.jsonl", "timing.jsonl"):
            lines = self._lines(name)
            kept = []
            for line in lines:
                record = _parse_record(line) if line.endswith("\n") else None
                if record is not None and record["step"] <= step and record["kind"] in KINDS:
                    kept.append(line)
            if kept != lines:
                self._replace(name, "".join(kept))
        return damaged

    def _lines(self, name: str) -> list[str]:
        path = self.path / name
        if not path.exists():
            return []
        # Not splitlines: a damaged line may hold characters that Unicode takes for the end of a line.
        return re.findall(r"[^\n]*\n|[^\n]+", untrusted.read_text(path, errors="replace"))

    def _replace(self, name: str, text: str) -> None:
        atomic.replace(self.path / name, text.encode())


def previous_checkpoint(path: Path) -> Path:
    """The predecessor of a checkpoint."""
    return path.with_name(path.name + ".previous")


def cache_folder() -> Path:
    """The folder of what outlives a run: METARUN_CACHE, or metarun's folder in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metarun"
    named = os.environ.get("METARUN_CACHE")
    return Path(os.path.expanduser(named)) if named else default


def find_latest(outputs: Path = Path("outputs")) -> Path | None:
    """The run below `outputs` whose checkpoint is the newest: in outputs/DATE/RUN, or in a sweep there."""
    found = [*outputs.glob("*/*/checkpoints/last.pt"), *outputs.glob("*/*/*/checkpoints/last.pt")]
    return max(found, key=lambda path: path.stat().st_mtime).parents[1] if found else None


def link_latest(folder: Path) -> None:
    """Let outputs/latest lead to a run in outputs/DATE. Runs elsewhere have no link, nor do systems without links."""
    outputs = Path("outputs").absolute()
    link, made = outputs / "latest", outputs / f".latest-{os.getpid()}"
    if folder.absolute().parent.parent != outputs:
        return
    with contextlib.suppress(OSError):
        if link.exists() and not link.is_symlink():
            return
        made.symlink_to(folder.absolute().relative_to(outputs), target_is_directory=True)
        made.replace(link)  # at once, for others who read it


def new_folder(parent: Path, name: str) -> Path:
    """Make a new folder NAME, NAME-2, ...; two processes never get the same one."""
    parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1000):
        folder = parent / (name + (f"-{attempt + 1}" if attempt else ""))
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise UserError(f"{parent}: cannot make a new folder {name}")


REFUSED = {".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml", "metarun.log", ".run.lock", ".torchrun"}
"""The files in the folder of a command that is refused before its job begins."""


def remove_refused(folder: Path) -> None:
    """Remove the folder that was made for a command if the job left nothing in it, and its parents if these are empty.
    Any other file keeps it."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    log = folder / "metarun.log"
    if not found <= REFUSED or (log.exists() and log.stat().st_size):
        return
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)
        for parent in (folder.parent, folder.parent.parent):
            parent.rmdir()


def _parse_record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("kind") not in (*KINDS, "test"):
        return None
    numeric = all(_is_numeric(value) for key, value in record.items() if key != "kind")
    return record if numeric and type(record.get("step")) is int and record["step"] >= 0 else None


def _is_numeric(value: Any) -> bool:
    """Whether a record of metarun may hold it: a number, null for one that is not finite, or a table of these."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return all(
        item is None or isinstance(item, float) or (isinstance(item, int) and abs(item) < 2**63) for item in items
    )
