"""job=analyze: one analysis of a trained run (`run=DIR analysis=NAME`), or of the settings where it trains itself."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from metarun.analyses.context import Context
from metarun.analyses.frame import Analysis, run_analysis
from metarun.config import catalogue
from metarun.config.components import build
from metarun.config.schema import Config
from metarun.errors import SettingError, UserError
from metarun.jobs.result import Result
from metarun.jobs.train import leave_report, train_job
from metarun.storage.progress import print_notice
from metarun.storage.run_folder import RunFolder
from metarun.training.experiment import option_name

ELSEWHERE = ("job", "run", "resume", "choices", "device", "logger", "predict", "trusted_modules", "report")
"""Settings that do not change what an analysis finds."""


def analyze_job(config: Config, record: RunFolder) -> Result:
    """Leaves results.csv, results.json and a figure in RUN/analyses/NAME, or in the folder of the job without a run."""
    if not config.analysis:
        names = ", ".join(catalogue.list_options("analysis"))
        raise SettingError("analysis", None, f"job=analyze needs one; choices: {names}")
    source = RunFolder(Path(config.run)) if config.run else None
    if source:
        source.config()
    analysis: Analysis = build("analysis", config.analysis, config.trusted_modules)
    name = option_name("analysis", config)
    folder = folder_for(config, source, name) if source else own_folder(config, record)
    context = Context(config, source, folder, train_job)
    what = source.path if source else f"algo={option_name('algo', config)} data={option_name('data', config)}"
    print(f"metarun: {name} of {what}")
    try:
        results = run_analysis(analysis, context, print)
    except KeyboardInterrupt:
        print_notice("stopped; the same command continues from here")
        raise
    message = results["summary"].get("message")
    report = leave_report(source) if source and config.report else None
    lines = [message, f"results: {folder}", f"report of the run: {report}" if report else None]
    print(*filter(None, lines), sep="\n")
    return Result("completed", results["summary"], folder)


def folder_for(config: Config, source: RunFolder, name: str) -> Path:
    """RUN/analyses/NAME, or NAME-2, ... where that holds results for other settings."""
    for count in range(1, 1000):
        folder = RunFolder(source.path / "analyses" / (name if count == 1 else f"{name}-{count}"))
        if taken(config, folder):
            return folder.path
    raise SettingError("analysis", name, f"{source.path / 'analyses'} has too many folders")


def own_folder(config: Config, record: RunFolder) -> Path:
    """The folder of the job; refused where it holds results for other settings, which would be taken for these."""
    if not taken(config, record):
        raise UserError(f"hydra.run.dir={record.path}: holds results for other settings; name another folder")
    return record.path


def taken(config: Config, folder: RunFolder) -> bool:
    """Whether the folder is for these settings: it is new, and now says that it is, or has said so before."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ELSEWHERE}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    if _digest(folder.path / "settings.json") not in (None, digest):
        return False
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_json("settings.json", {"sha256": digest, "settings": settings})
    return True


def _digest(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
