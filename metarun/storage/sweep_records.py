"""What a sweep leaves beside its runs: job.json in each job's folder, sweep.json in the sweep's."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from metarun.errors import one_line
from metarun.storage import untrusted
from metarun.storage.status import FINAL

MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class JobRecord:
    """What became of a job so far."""

    key: str = ""
    number: int = 0  # in its sweep
    overrides: list[str] = field(default_factory=list)
    status: str = "waiting"  # waiting, running, completed, time is up, diverged, failed, interrupted
    objective: float | None = None  # what the sweeper was told
    reason: str = ""
    attempts: int = 0
    started: float | None = None  # seconds since the epoch
    seconds: float = 0.0  # of the last attempt
    visits: dict[str, bool] = field(default_factory=dict)  # sittings that came by, and whether each skipped it as done
    changed: list[str] = field(default_factory=list)  # settings files that were edited while the sweep ran

    def visited(self, visit: str, skipped: bool) -> JobRecord:
        return replace(self, visits={**self.visits, visit: skipped})

    @property
    def final(self) -> bool:
        return self.status in FINAL and self.objective is not None


@dataclass(frozen=True)
class SweepRecord:
    """What a sweep is: one command, whose jobs may take several sittings."""

    command: list[str] = field(default_factory=list)
    fixed: list[str] = field(default_factory=list)  # keys that the command gives a single value
    key: str = ""  # of the command
    visit: str = ""  # the sitting that goes on, or the last one
    total: int | None = None  # jobs, where that is known
    width: int = 1  # jobs at once
    threads: int = 1  # of each
    again: bool = False
    files: dict[str, str] = field(default_factory=dict)  # digests of the settings files


def read_job(folder: Path) -> JobRecord:
    """An empty record where there is none that can be read."""
    return _read(JobRecord, folder / "job.json")


def read_sweep(folder: Path) -> SweepRecord:
    return _read(SweepRecord, folder / "sweep.json")


def write_job(folder: Path, record: JobRecord) -> None:
    _write(folder / "job.json", record)


def write_sweep(folder: Path, record: SweepRecord) -> None:
    _write(folder / "sweep.json", record)


def jobs_of(folder: Path, visit: str) -> Iterator[tuple[Path, JobRecord]]:
    """The jobs that this sitting of the sweep has come to, in their order."""
    found = [(path, read_job(path)) for path in job_folders(folder)]
    yield from sorted(((p, r) for p, r in found if visit in r.visits), key=lambda pair: pair[1].number)


def job_folders(folder: Path) -> Iterator[Path]:
    """The folders of a sweep's jobs; what lies in them is not looked through, for a sweep may have thousands."""
    for where, folders, files in os.walk(folder):
        if "job.json" in files:
            yield Path(where)
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]


def _read(kind: Any, path: Path) -> Any:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
        stored = json.loads(untrusted.text(path, MOST_BYTES))
        known = {f.name: f.type for f in fields(kind)}
        return kind(**{k: _checked(v, str(known[k])) for k, v in stored.items() if k in known})
    return kind()


def _checked(value: Any, hint: str) -> Any:
    """The value of a field if it is of its type, its texts without control characters: they are shown on terminals."""
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
        return [_checked(item, "str") for item in value]
    if plain == "dict" and isinstance(value, dict):
        return {_checked(key, "str"): _checked(item, inner[:-1].partition(", ")[2]) for key, item in value.items()}
    raise TypeError(f"is no {hint}")


def _write(path: Path, record: Any) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
