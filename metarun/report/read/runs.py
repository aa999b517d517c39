"""Run folders as they are found: whole, still running, stopped, damaged, or of another program.

Reading never raises for what a run lacks: `missing` says it in sentences, and the rest is there to be shown. Only a
folder that holds no run at all is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from metarun.errors import UserError, one_line
from metarun.report.read.files import Analysis, Record, analyses, json_file, mapping, overrides_in, records
from metarun.storage import untrusted
from metarun.storage.text import is_number

SIGNS = ("summary.json", "metrics.jsonl")  # one of these beside config.yaml makes a run folder
TESTING = ("evaluate",)  # jobs without training


@dataclass(frozen=True)
class Scores:
    """Each test task's figure after each reported adaptation step."""

    steps: tuple[int, ...]
    values: np.ndarray  # [R, tasks]


@dataclass(frozen=True)
class Run:
    """All that one run folder holds, and what it does not."""

    path: Path
    config: Mapping[str, Any]
    config_text: str
    summary: Mapping[str, Any]
    records: Mapping[str, tuple[Record, ...]]  # of metrics.jsonl by kind, ascending steps
    seconds: Mapping[tuple[str, int], float]  # of timing.jsonl: (kind, step) -> seconds of training so far
    scores: Scores | None
    analyses: tuple[Analysis, ...]
    overrides: tuple[str, ...] | None  # what was typed, where Hydra noted it
    missing: tuple[str, ...]
    functions: Mapping[str, Any] = field(default_factory=dict)  # functions.json

    @property
    def name(self) -> str:
        return self.path.name or str(self.path)

    def of(self, kind: str) -> tuple[Record, ...]:
        return self.records.get(kind, ())


def find_runs(folder: Path) -> list[Path]:
    """The run folders at or below `folder`, the jobs of a sweep in their order; `UserError` where there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if _may_be_run(folder):
        return [folder]
    found = list(_runs_below(folder))
    if not found:
        raise UserError(f"{folder}: is no run folder of metarun and holds none (config.yaml with {' or '.join(SIGNS)})")
    return sorted(found, key=_natural)


def never_began(folder: Path) -> bool:
    """Whether the folder is what Hydra leaves of a command that was refused: its notes, and no file of a run."""
    return (folder / ".hydra").is_dir() and not any(
        (folder / name).exists() for name in ("config.yaml", "job.json", *SIGNS)
    )


def _may_be_run(folder: Path) -> bool:
    """Generous to the folder that was named: a run that lost its settings still has numbers to show."""
    if any((folder / name).is_file() for name in SIGNS):
        return True
    config, _ = mapping(folder / "config.yaml")
    return "algo" in config and "train" in config


def _runs_below(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        if "config.yaml" in files and any(name in files for name in SIGNS):
            yield Path(where)
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """0, 1, ... 9, 10 rather than 0, 1, 10, ... 9."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in path.parts]


def read_run(path: Path | str) -> Run:
    """Everything in a run folder; `missing` has a sentence for each thing that is not there or not readable."""
    path = Path(path)
    config, no_config = mapping(path / "config.yaml")
    summary, no_summary = json_file(path / "summary.json", dict)
    found, torn = records(path / "metrics.jsonl")
    timing, no_timing = records(path / "timing.jsonl")
    scores, no_scores = _scores(path / "test.json", bool(summary and "mean" in summary))
    studies, bad_studies = analyses(path / "analyses")
    has_functions = (path / "functions.json").exists()
    functions, no_functions = json_file(path / "functions.json", dict) if has_functions else (None, "")
    problems = [
        no_functions,
        no_config,
        no_summary,
        *_ending(summary or {}, path),
        *torn,
        *no_timing,
        no_scores,
        *bad_studies,
    ]
    problems += _gaps(config, found)
    return Run(
        path=path,
        config=config,
        config_text=_text(path / "config.yaml"),
        summary=summary or {},
        records=_by_kind(found),
        seconds={(r["kind"], r["step"]): r["seconds"] for r in timing if is_number(r.get("seconds"))},
        scores=scores,
        analyses=tuple(studies),
        overrides=_overrides(path / ".hydra" / "overrides.yaml"),
        missing=tuple(p for p in problems if p),
        functions=functions or {},
    )


def _ending(summary: Mapping[str, Any], path: Path) -> list[str]:
    """How a run ended that did not end as it should."""
    reason = f": {one_line(summary['reason'])}" if summary.get("reason") else ""
    status = summary.get("status")
    sentences = {
        "running": 'The run has not ended: summary.json says "running", so it is going on or it was killed.',
        "diverged": f"The run diverged{reason}.",
        "interrupted": f"The run was interrupted{reason}; it continues with: metarun resume={path}",
        "failed": f"The run failed{reason}; metarun.log may say more.",
        "time is up": "The run stopped when its time was up (train.max_minutes), before its last step.",
    }
    return [sentences.get(str(status), "")] if status else []


def _gaps(config: Mapping[str, Any], found: Sequence[Record]) -> list[str]:
    """What a run of its job should have logged and did not."""
    kinds = {r["kind"] for r in found}
    expected = () if config.get("job") in TESTING else ("train", "val")
    names = {"train": "training", "val": "validation"}
    lacking = [names[k] for k in expected if k not in kinds]
    return [f"metrics.jsonl has no record of {' and none of '.join(lacking)}."] if lacking and found else []


def _by_kind(found: Sequence[Record]) -> dict[str, tuple[Record, ...]]:
    ordered = sorted(found, key=lambda r: r["step"])
    return {kind: tuple(r for r in ordered if r["kind"] == kind) for kind in {r["kind"] for r in ordered}}


def _scores(path: Path, expected: bool) -> tuple[Scores | None, str]:
    if not path.exists():
        return None, "test.json is missing: no paired comparison with this run." if expected else ""
    stored, problem = json_file(path, dict)
    if stored is None:
        return None, problem
    try:
        values = np.asarray(stored["scores"], dtype=float)
        steps = tuple(int(s) for s in stored.get("steps", range(len(values))))
    except (KeyError, TypeError, ValueError):
        return None, "test.json is not of the expected form: no paired comparison with this run."
    if values.ndim != 2 or len(values) != len(steps) or not values.size:
        return None, "test.json is not of the expected form: no paired comparison with this run."
    return Scores(steps, values), ""


def _overrides(path: Path) -> tuple[str, ...] | None:
    """None where one of them is no override: it would be shown as part of a command."""
    try:
        typed = None if path.parent.is_symlink() else untrusted.read_yaml(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    return overrides_in(typed)


def _text(path: Path) -> str:
    try:
        return untrusted.read_text(path, untrusted.SETTINGS, errors="replace")
    except OSError:
        return ""
