"""The records of a sweep: job.json in the folder of each job, sweep.json in the folder of the sweep."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from metarun.errors import one_line
from metarun.storage import untrusted
from metarun.storage.atomic import name_file_in_errors
from metarun.storage.status import FINAL

MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class JobRecord:
    """The state of a job."""

    key: str = ""
    number: int = 0  # in its sweep
    overrides: list[str] = field(default_factory=list)
    status: str = "waiting"  # waiting, running, completed, time is up, diverged, failed, interrupted
    objective: float | None = None  # the number that the sweeper got
    reason: str = ""
    attempts: int = 0
    started: float | None = None  # seconds since the epoch
    seconds: float = 0.0  # of the last attempt
    visits: dict[str, bool] = field(default_factory=dict)  # sitting that reached it -> whether it skipped it as done
    changed: list[str] = field(default_factory=list)  # settings files that were edited while the sweep ran

    @property
    def final(self) -> bool:
        return self.status in FINAL and self.objective is not None


@dataclass(frozen=True)
class SweepRecord:
    """A sweep: one command, whose jobs may take several sittings."""

    command: list[str] = field(default_factory=list)
    fixed: list[str] = field(default_factory=list)  # keys with a single value in the command
    key: str = ""  # of the command
    visit: str = ""  # the sitting that goes on, or the last one
    total: int | None = None  # jobs, if known
    width: int = 1  # jobs at once
    threads: int = 1  # of each
    again: bool = False
    files: dict[str, str] = field(default_factory=dict)  # digests of the settings files


def read_job(folder: Path) -> JobRecord:
    """Return the record of a job, an empty one if there is none that can be read."""
    return _read(JobRecord, folder / "job.json")


def read_sweep(folder: Path) -> SweepRecord:
    return _read(SweepRecord, folder / "sweep.json")


def write_job(folder: Path, record: JobRecord) -> None:
    _write(folder / "job.json", record)


def write_sweep(folder: Path, record: SweepRecord) -> None:
    _write(folder / "sweep.json", record)


def jobs_of(folder: Path, visit: str) -> Iterator[tuple[Path, JobRecord]]:
    """The jobs that this sitting of the sweep has reached, in their order."""
    found = [(path, read_job(path)) for path in job_folders(folder)]
    yield from sorted(((p, r) for p, r in found if visit in r.visits), key=lambda pair: pair[1].number)


def job_folders(folder: Path) -> Iterator[Path]:
    """The folders of a sweep's jobs. What lies in them is not searched, for a sweep may have thousands."""
    for parent, folders, files in os.walk(folder):
        if "job.json" in files:
            yield Path(parent)
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]


def _read(kind: Any, path: Path) -> Any:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
        stored = json.loads(untrusted.read_text(path, MOST_BYTES))
        known = {f.name: f.type for f in fields(kind)}
        return kind(**{k: _check_type(v, str(known[k])) for k, v in stored.items() if k in known})
    return kind()


def _check_type(value: Any, hint: str) -> Any:
    """Return the value of a field if it has the field's type, strings without control characters, as for a terminal."""
    if value is None and hint.endswith("| None"):
        return None
    numeric = isinstance(value, (int, float)) and math.isfinite(value)
    plain, _, inner = hint.removesuffix(" | None").partition("[")
    if plain == "str" and isinstance(value, str):
        return one_line(value) if value else ""
    if (plain == "int" and type(value) is int) or (plain == "bool" and isinstance(value, bool)):
        return value
    if plain == "float" and numeric and not isinstance(value, bool):
        return value
    if inner == "str]" and isinstance(value, list):
        return [_check_type(item, "str") for item in value]
    if plain == "dict" and isinstance(value, dict):
        of_items = inner[:-1].partition(", ")[2]
        return {_check_type(key, "str"): _check_type(item, of_items) for key, item in value.items()}
    raise TypeError(f"is no {hint}")


def _write(path: Path, record: Any) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with name_file_in_errors(path):
        try:
            temporary.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
