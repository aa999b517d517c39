"""Folders as a sweep leaves them, and what the report reads in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers.report_folders import records, write_run
from metarun.report.compare.sweep import Axis, Sweep, collect_sweep, find_axes
from metarun.report.read.jobs import find_jobs, list_jobs
from metarun.report.read.runs import read_run


def write_job(
    sweep: Path, number: int, *overrides: str, val: float | None = 1.0, test: float | None = 1.0, run: bool = True,
    recorded: bool = True, config: dict[str, Any] | None = None, summary: dict[str, Any] | None = None, **record: Any,
) -> Path:  # fmt: skip
    """The folder that a sweep's job leaves: job.json, what was typed, and a run whose best validation is `val`."""
    folder = sweep / f"job{number}"
    seed = next((int(o.partition("=")[2]) for o in overrides if o.startswith("seed=")), 0)
    if run:
        lines = [*records([40])[:1], {"kind": "val", "step": 40, "mean": val, "ci95": 0.01, "improved": True}]
        status = record.get("status", "completed")
        changed = {"seed": seed, "mean": test, "val_error": val, "status": status, **(summary or {})}
        write_run(folder, changed, {"seed": seed, **(config or {})}, lines)
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(list(overrides)))
    if recorded:
        folder.mkdir(parents=True, exist_ok=True)
        record = {"key": "k", "number": number, "overrides": list(overrides), "status": "completed"} | record
        (folder / "job.json").write_text(json.dumps(record))
    return folder


def read_sweep(sweep: Path) -> Sweep:
    paths, others = find_jobs(sweep)
    result = collect_sweep(list_jobs([read_run(path) for path in paths], others))
    assert result is not None
    return result


def find_swept_axes(sweep: Path) -> list[Axis]:
    paths, others = find_jobs(sweep)
    return find_axes(list_jobs([read_run(path) for path in paths], others))[0]


def write_sweep(folder: Path) -> Path:
    """Two rates x three seeds; the better test figure belongs to the worse validation."""
    for seed, (val_a, val_b) in enumerate([(1.0, 4.0), (2.0, 4.0), (3.0, 7.0)]):
        write_job(folder, 2 * seed, "algo.inner_lr=0.1", f"seed={seed}", val=val_a, test=9.0 + seed)
        write_job(folder, 2 * seed + 1, "algo.inner_lr=0.2", f"seed={seed}", val=val_b, test=0.1)
    return folder
