"""A published row, from training to its line in docs/results.md: python -m benchmarks.reproduce ROW [--seeds 0,1]

ROW is an experiment of conf/experiment with a published figure, as omniglot_5w1s_maml or omniglot/5w1s_maml. Stopped,
the same command goes on where it was; what has ended is not run again. A row that says `published.trained_as` is the
test of another row's training.

    outputs/reproduce/ROW/seed0         the run, or the test of another row's run
    docs/results.json, docs/results.md  a record of each row and seed, and the tables made of them (results.py)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import metarun
from benchmarks.results import RECORDS, record_of, save
from metarun.config import catalogue
from metarun.config.schema import Config
from metarun.errors import nearest
from metarun.report.read.runs import read_run

ENDED = ("completed", "time is up")


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse(arguments)
    rows = [catalogue.flat_name(name) for name in catalogue.list_options("experiment")]
    if asked.row not in rows:
        return refused(f"ROW={asked.row}: {nearest(asked.row, rows)}")
    config = metarun.compose([f"experiment={asked.row}"])
    if not (config.published.source or config.published.trained_as):
        return refused(f"ROW={asked.row}: is an experiment without a published figure")
    for seed in asked.seeds:
        folder = reproduced(asked.row, config, seed, asked.outputs, asked.overrides)
        if isinstance(folder, int):
            return folder
        trained = asked.outputs / (config.published.trained_as or asked.row) / f"seed{seed}"
        save(record_of(asked.row, seed, asked.overrides, read_run(folder), read_run(trained)), RECORDS)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make reproduce", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("row", type=catalogue.flat_name)
    parser.add_argument("--seeds", type=numbers, default=[0])
    parser.add_argument("--outputs", type=Path, default=Path("outputs/reproduce"))
    parser.add_argument("overrides", nargs="*", help="settings of the machine, as device.threads=1")
    return parser.parse_intermixed_args(arguments)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def refused(message: str) -> int:
    print(f"reproduce: {message}", file=sys.stderr)
    return 2


def reproduced(row: str, config: Config, seed: int, outputs: Path, overrides: Sequence[str]) -> Path | int:
    """The folder of the row's result, or the exit code of the command that failed."""
    trained = config.published.trained_as or row
    source = outputs / trained / f"seed{seed}"
    # A completed run would be tested again.
    code = 0 if trained != row and status(source) == "completed" else run(training(trained, source, seed, overrides))
    if code or trained == row:
        return code or source
    folder = outputs / row / f"seed{seed}"
    if status(folder) in ENDED:
        return folder
    code = run(["job=evaluate", f"run={source}", f"experiment={row}", f"hydra.run.dir={folder}", *overrides])
    return code or folder


def training(row: str, folder: Path, seed: int, overrides: Sequence[str]) -> list[str]:
    """Train, go on, or say that there is nothing to do."""
    if (folder / "config.yaml").exists():
        return [f"resume={folder}"]
    return [f"experiment={row}", f"seed={seed}", f"hydra.run.dir={folder}", *overrides]


def status(folder: Path) -> Any:
    path = folder / "summary.json"
    return json.loads(path.read_text()).get("status") if path.exists() else None


def run(overrides: Sequence[str]) -> int:
    """metarun with these words, as it would be typed; Ctrl-C stops it with a checkpoint."""
    print("metarun", *overrides, flush=True)
    child = subprocess.Popen([sys.executable, "-m", "metarun", *overrides])
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the child has got it as well, and ends after its step
            continue


if __name__ == "__main__":
    sys.exit(main())
