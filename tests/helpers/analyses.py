"""Tiny settings, and functions that train and analyse runs with them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import metarun
from metarun.analyses.analysis import Context, run_analysis
from metarun.cli.compose import compose
from metarun.errors import UserError
from metarun.jobs.train_together import train_runs

QUICK = ["train.steps=3", "train.tasks=2", "val.tasks=2", "test.tasks=6", "device.compile=false", "report=false"]
POINTS = ["data=sinusoid", "data.shots=5", "data.test_queries=8", "model.hidden=[8]", *QUICK]
IMAGES = [
    "data=folder",
    "data.image_size=16",
    "data.ways=2",
    "data.queries=2",
    "data.test_queries=2",
    "model.filters=4",
    *QUICK,
]
TINY = ["train.steps=4", "train.tasks=2", "train.log_every=2", "train.eval_every=2", "val.tasks=3", "test.tasks=5"]
TINY += ["test.steps=2", "device.compile=false", "device.threads=1", "report=false", "algo.test_inner_steps=2"]
TINY += ["model.hidden=[8]"]
"""Of analyses that train runs themselves."""

Run = tuple[list[str], Path]
"""Settings and folder."""


def train(folder: Path, *settings: str) -> Run:
    """Train a run as the command line does."""
    metarun.run(metarun.compose(list(settings)), folder)
    return list(settings), folder


def analyse(run: Run, analysis: str, *more: str) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    """Analyse a run as the command line does: the summary, the rows, the folder."""
    settings, folder = run
    config = metarun.compose([*settings, "job=analyze", f"run={folder}", f"analysis={analysis}", *more])
    result = metarun.run(config, folder / "job")
    found = json.loads((result.folder / "results.json").read_text())
    assert (result.folder / "figure.png").stat().st_size > 1000
    with (result.folder / "results.csv").open() as file:
        assert len(list(csv.reader(file))) == len(found["rows"]) + 1
    return found["summary"], found["rows"], result.folder


def refusal(action: Callable[[], object]) -> str:
    """The message of the `UserError` that the action raises, which has one line."""
    with pytest.raises(UserError) as error:
        action()
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def make_context(folder: Path, *more: str) -> Context:
    """The context of an analysis without a run to analyse."""
    return Context(compose([*TINY, *more]), None, folder, train_runs)


def ignore(line: str) -> None:
    """Discard a line of progress."""


def run_in_context(context: Context, analysis: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run an analysis without a job: the rows and the summary."""
    results = run_analysis(analysis, context, ignore)
    assert (context.folder / "figure.png").stat().st_size > 5000
    return results["rows"], results["summary"]
