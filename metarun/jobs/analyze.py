"""job=analyze: one analysis of a trained run (`run=DIR analysis=NAME`), or of settings if it trains its own runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
from pathlib import Path

from metarun.analyses.analysis import Analysis, Context, run_analysis
from metarun.config import catalogue
from metarun.config.components import build
from metarun.config.schema import Config, to_dict
from metarun.errors import SettingError, UserError
from metarun.jobs.result import Result
from metarun.jobs.summary import params_sha256
from metarun.jobs.train import leave_report
from metarun.jobs.train_together import train_runs
from metarun.storage.progress import print_notice
from metarun.storage.run_folder import RunFolder
from metarun.training.experiment import NO_PARTS, OwnParts, option_name

UNRELATED = ("job", "run", "resume", "choices", "device", "logger", "predict", "trusted_modules", "report")
"""Settings that do not change the results of an analysis."""


def analyze_job(config: Config, record: RunFolder, own: OwnParts = NO_PARTS) -> Result:
    """Write results.csv, results.json and figures to RUN/analyses/NAME, or to the job's own folder without a run."""
    if not config.analysis:
        names = ", ".join(catalogue.list_options("analysis"))
        raise SettingError("analysis", None, f"job=analyze needs one; choices: {names}")
    source = RunFolder(Path(config.run)) if config.run else None
    if source:
        source.read_config()  # raise UserError if it is no run folder
    analysis: Analysis = build("analysis", config.analysis, config.trusted_modules)
    name = option_name("analysis", config)
    folder = choose_folder(config, source, name, own) if source else record.path
    if not source and not claim_folder(config, record, own):
        raise UserError(f"hydra.run.dir={folder}: holds results for other settings; name another folder")
    what = source.path if source else f"algo={option_name('algo', config)} data={option_name('data', config)}"
    print(f"metarun: {name} of {what}")
    try:
        results = run_analysis(analysis, Context(config, source, folder, train_runs, own), print_line)
    except KeyboardInterrupt:
        print_notice("stopped; the same command continues from here")
        raise
    except UserError:
        release_folder(folder)
        raise
    message = results["summary"].get("message")
    report = leave_report(source) if source and config.report else None
    lines = [message, f"results: {folder}", f"report of the run: {report}" if report else None]
    print(*filter(None, lines), sep="\n")
    return Result("completed", results["summary"], folder)


def print_line(line: str) -> None:
    """Print it as one line: what is wider than the terminal is cut off."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else len(line)
    print(line if len(line) <= width else f"{line[: width - 1]}…", flush=True)


def choose_folder(config: Config, source: RunFolder, name: str, own: OwnParts = NO_PARTS) -> Path:
    """RUN/analyses/NAME, or NAME-2, ... if that holds results for other settings."""
    for count in range(1, 1000):
        folder = RunFolder(source.path / "analyses" / (name if count == 1 else f"{name}-{count}"))
        if claim_folder(config, folder, own):
            return folder.path
    raise SettingError("analysis", name, f"{source.path / 'analyses'} has too many folders")


def release_folder(folder: Path) -> None:
    """Undo `claim_folder` where nothing was measured: settings that were refused leave no folder."""
    if not {"results.jsonl", "runs"} & {path.name for path in folder.iterdir()}:
        (folder / "settings.json").unlink()
        with contextlib.suppress(OSError):  # without a run it is the job's own folder, with files of others
            folder.rmdir()
            folder.parent.rmdir()


def claim_folder(config: Config, folder: RunFolder, own: OwnParts = NO_PARTS) -> bool:
    """Write the settings and their checksum to settings.json. Return False, and write nothing, if the folder holds
    results for other settings, whose rows would be read as rows of these."""
    settings = {k: v for k, v in to_dict(config).items() if k not in UNRELATED}
    if own.model is not None:
        from metarun.models.module import given_weights  # with a network of the user's alone

        settings["weights_sha256"] = params_sha256({k: w.double() for k, w in (given_weights(own.model) or {}).items()})
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    try:
        stored = json.loads((folder.path / "settings.json").read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        stored = None
    if stored not in (None, digest):
        return False
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_json("settings.json", {"sha256": digest, "settings": settings})
    return True
