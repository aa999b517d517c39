"""Run folders in any state: whole, still running, stopped, damaged, or of another program.

Reading never raises for what a run lacks: `missing` names it in sentences, and the rest is shown. Only a folder that
holds no run at all is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from metarun.errors import UserError, one_line
from metarun.report.read import files
from metarun.report.read.details import NO_DETAILS, Details, count_listed, read_details
from metarun.report.read.files import Analysis, Record
from metarun.storage import untrusted
from metarun.storage.text import is_number

RUN_FILES = ("summary.json", "metrics.jsonl")  # one of these beside config.yaml makes a run folder
COMPARED_JOBS = ("train", "evaluate", None)  # jobs that end in a test metric
NO_PAIRS = "no paired comparison with this run."
ENDINGS = {
    "running": 'The run has not ended: summary.json says "running", so it is still running or it was killed.',
    "diverged": "The run diverged{reason}.",
    "interrupted": "The run was interrupted{reason}; it continues with: metarun resume={path}",
    "failed": "The run failed{reason}; metarun.log may say more.",
    "time is up": "The run stopped when its time was up (train.max_minutes), before its last step.",
}


@dataclass(frozen=True)
class Run:
    """What one run folder holds, and what it lacks."""

    path: Path
    config: Mapping[str, Any]
    config_text: str
    summary: Mapping[str, Any]
    records: Mapping[str, tuple[Record, ...]]  # of metrics.jsonl by kind, ascending steps
    seconds: Mapping[tuple[str, int], float]  # of timing.jsonl: (kind, step) -> seconds of training so far
    scores: Mapping[int, np.ndarray] | None  # reported adaptation step -> metric of each test task
    analyses: tuple[Analysis, ...]
    overrides: tuple[str, ...] | None  # of the command line, if Hydra noted them
    missing: tuple[str, ...]
    functions: Mapping[str, Any] = field(default_factory=dict)  # functions.json
    tasks: Mapping[str, Any] = field(default_factory=dict)  # tasks.json
    details: Details = NO_DETAILS

    @property
    def name(self) -> str:
        return self.path.name or str(self.path)

    def of(self, kind: str) -> tuple[Record, ...]:
        """The records of one kind: train, val, probe or test."""
        return self.records.get(kind, ())


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders at or below `folder`, the jobs of a sweep in order. Raise `UserError` if there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if any((folder / name).is_file() for name in RUN_FILES):  # a run that lost its settings still has metrics to show
        return [folder]
    if {"algo", "train"} <= files.read_settings(folder / "config.yaml")[0].keys():
        return [folder]
    found = []
    for where, folders, names in os.walk(folder):
        if "config.yaml" in names and any(name in names for name in RUN_FILES):
            found.append(Path(where))
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
    if not found:
        raise UserError(f"{folder}: is not a run folder and holds none (config.yaml with {' or '.join(RUN_FILES)})")
    # 0, 1, ... 9, 10 rather than 0, 1, 10, ... 9
    return sorted(found, key=lambda path: [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in path.parts])


def is_refused_command(folder: Path) -> bool:
    """Whether the folder is what Hydra leaves of a command that was refused: its notes, and no file of a run."""
    names = ("config.yaml", "job.json", *RUN_FILES)
    return (folder / ".hydra").is_dir() and not any((folder / name).exists() for name in names)


def read_run(path: Path | str) -> Run:
    """Read a run folder; `missing` has a sentence for each file that is absent or not readable."""
    path = Path(path)
    config, no_config = files.read_settings(path / "config.yaml")
    stored, no_summary = files.read_json(path / "summary.json", dict)
    summary = stored or {}
    records, bad_records = files.read_records(path / "metrics.jsonl")
    timing, bad_timing = files.read_records(path / "timing.jsonl")
    scores, no_scores = _read_scores(path / "test.json", "mean" in summary)
    analyses, bad_analyses = files.read_analyses(path / "analyses")
    functions, no_functions = _read_optional(path / "functions.json")
    tasks, no_tasks = _read_optional(path / "tasks.json")
    details = read_details(path / "details.csv")
    try:
        config_text = untrusted.read_text(path / "config.yaml", untrusted.SETTINGS, errors="replace")
    except OSError:
        config_text = ""
    hydra = path / ".hydra"
    first, last = (
        None if folder.is_symlink() else files.parse_overrides(files.read_yaml(folder / "overrides.yaml")[0])
        for folder in (hydra, hydra / "resumed")
    )
    reason = f": {one_line(summary['reason'])}" if summary.get("reason") else ""
    ending = ENDINGS.get(str(summary.get("status")), "").format(reason=reason, path=path)
    problems = [
        no_functions,
        no_tasks,
        no_config,
        no_summary,
        ending,
        *bad_records,
        *bad_timing,
        no_scores,
        *bad_analyses,
    ]
    kinds = dict.fromkeys(record["kind"] for record in records)
    lacking = [name for kind, name in (("train", "training"), ("val", "validation")) if kind not in kinds]
    if records and lacking and config.get("job") != "evaluate":
        problems.append(f"metrics.jsonl has no record of {' and none of '.join(lacking)}.")
    ordered = sorted(records, key=lambda record: record["step"])
    return Run(
        path=path,
        config=config,
        config_text=config_text,
        summary=summary,
        records={kind: tuple(r for r in ordered if r["kind"] == kind) for kind in kinds},
        seconds={(r["kind"], r["step"]): r["seconds"] for r in timing if is_number(r.get("seconds"))},
        scores=scores,
        analyses=tuple(analyses),
        overrides=None if first is None else _join_overrides(first, last or (), config),
        missing=tuple(filter(None, problems)),
        functions=functions,
        tasks=tasks,
        details=details if details.confusion else count_listed(tasks.get("classes")),
    )


def _join_overrides(first: tuple[str, ...], last: tuple[str, ...], config: Record) -> tuple[str, ...]:
    """The overrides of the command that began a run, with what the last command that resumed it changed in `config`."""
    later = {}
    for key, _, value in (override.partition("=") for override in last):
        stored = files.look_up(config, key)
        if stored is not None and str(stored).lower() == value.lower() and not key.startswith("resume"):
            later[key] = f"{key}={value}"
    kept = [o for o in first if o.partition("=")[0] not in later]
    return (*kept, *later.values())


def _read_optional(path: Path) -> tuple[Mapping[str, Any], str]:
    """The values of a file that a run may do without, and what is wrong with it."""
    if not path.exists():
        return {}, ""
    found, problem = files.read_json(path, dict)
    return found or {}, problem


def _read_scores(path: Path, expected: bool) -> tuple[dict[int, np.ndarray] | None, str]:
    if not path.exists():
        return None, f"test.json is missing: {NO_PAIRS}" if expected else ""
    stored, problem = files.read_json(path, dict)
    if stored is None:
        return None, problem
    try:
        values = np.asarray(stored["scores"], dtype=float)
        steps = tuple(int(s) for s in stored.get("steps", range(len(values))))
        if values.ndim != 2 or len(values) != len(steps) or not values.size:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        return None, f"test.json is not of the expected form: {NO_PAIRS}"
    return dict(zip(steps, values, strict=True)), ""
