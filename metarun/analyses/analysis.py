"""The protocol of an analysis, the context that it works in, and the loop that fills its table.

An analysis is a list of cells and a way to measure one. Its table is written cell by cell, so that it resumes. The
folder of an analysis has results.jsonl (a line a cell, as they are done), and at the end results.csv, results.json
(settings, rows, summary), figure.png and figure.svg; further figures have names of their own.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import dataclasses
import functools
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from metarun.config.from_run import read_other_run
from metarun.config.schema import Config, Options, check
from metarun.errors import SettingError, UserError, require
from metarun.report.figures.drawing import Drawing, style
from metarun.storage.json_values import replace_nonfinite
from metarun.storage.run_folder import RunFolder
from metarun.storage.status import FINAL
from metarun.storage.text import NOTHING, count_nouns, escape_formula
from metarun.training import checkpoint
from metarun.training.evaluation import calibrate
from metarun.training.experiment import NO_PARTS, Experiment, OwnParts, assemble
from metarun.training.own_parts import select_parts
from metarun.types import Algorithm, EpisodeSpec, Params

Cell = dict[str, Any]
"""Where a measurement is taken: axis -> value, plain and hashable as JSON."""

Row = dict[str, Any]
"""A cell and what was measured there."""


class Analysis(Protocol):
    """A frozen dataclass; its fields are the settings below `analysis.`"""

    def cells(self, context: Context) -> Sequence[Cell]:
        """The cells to measure, in this order. Raise `UserError` for settings that this run cannot have."""

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        """The numbers of one cell."""

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        """The summary of the whole table; its `message` is printed in the terminal."""

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        """The figures of the table; the first is saved as figure.png, the others by their names."""


TrainRuns = Callable[[Sequence[Any], Sequence[int], OwnParts], Sequence[Any]]
"""`train_runs` of jobs/train_together.py: train runs in their folders, each from the start or from where it stopped,
and test them. Analyses are below jobs and do not import them, so job=analyze passes this function in."""


@dataclass(frozen=True)
class TrainedRun:
    """A run that an analysis has trained."""

    summary: dict[str, Any]
    folder: RunFolder
    cpu_seconds: float | None = None  # of training and test, its share of runs side by side; None if it was stopped

    @property
    def diverged(self) -> bool:
        return self.summary["status"] == "diverged"


@dataclass(frozen=True)
class SourceRun:
    """The run that is analysed: its experiment, under its own settings, and its best checkpoint."""

    experiment: Experiment
    params: Params  # for test episodes

    @functools.cached_property
    def learner(self) -> Algorithm:
        """The learner for test episodes, with population statistics if its network has them."""
        experiment = self.experiment
        return calibrate(experiment.tested, self.params, experiment.dataset, experiment.placement)


@dataclass(frozen=True)
class Context:
    """What an analysis works with: a run or its settings, the same under other settings, and more runs like it."""

    config: Config
    source: RunFolder | None  # of the run to analyse; None if there are settings only
    folder: Path  # of the analysis
    train_runs: TrainRuns
    own: OwnParts = NO_PARTS
    opened: dict[Path, SourceRun] = dataclasses.field(default_factory=dict)  # by `open_for_test`

    def change_settings(self, changes: Mapping[str, Any]) -> Config:
        """The settings of a training with `changes`, dotted key -> value."""
        config = copy.deepcopy(self.config)
        config.analysis, config.run, config.resume, config.job = {}, None, None, "train"
        for key, value in changes.items():
            _set(config, key, value)
        check(config)
        return config

    def assemble(self, changes: Mapping[str, Any] | None = None) -> Experiment:
        """The experiment under changed settings."""
        return self._assemble(self.change_settings(changes or {}))

    def _assemble(self, config: Config) -> Experiment:
        return assemble(config, select_parts(self.own, config), embed=False)  # analyses change images

    @property
    def run(self) -> SourceRun:
        """The run to analyse, assembled once for all cells. Raise `SettingError` if there is none."""
        return self.open_for_test(self.require_source().path)

    def require_source(self) -> RunFolder:
        """The folder of the run to analyse. Raise `SettingError` if there is none."""
        if self.source is None:
            raise SettingError("run", None, "this analysis needs a trained run, as run=outputs/DATE/TIME-maml-sinusoid")
        return self.source

    def open_for_test(self, folder: Path, size: EpisodeSpec | None = None) -> SourceRun:
        """The run to analyse or another one, opened once: its learner and weights for test episodes, also where these
        have other ways than those of training. `size`: of the test episodes, in place of the run's own."""
        if folder not in self.opened:
            config = (
                self.change_settings({})
                if size is None
                else resize_test(read_other_run(str(folder), self.config), size)
            )
            experiment = self._assemble(config)
            params = experiment.initial_params()
            checkpoint.restore_params(checkpoint.best_of(RunFolder(folder)), params)
            self.opened[folder] = SourceRun(experiment, experiment.fit_head(params))
        return self.opened[folder]

    def train(self, name: str, changes: Mapping[str, Any]) -> TrainedRun:
        """Train a run with changed settings in runs/NAME, or continue it, or read it if it is finished. It starts from
        new weights, not from those of the run to analyse."""
        return self.train_one_of({name: changes}, name)

    def train_all(self, group: Mapping[str, Mapping[str, Any]]) -> dict[str, TrainedRun]:
        """The same for several runs, name -> changed settings: side by side where they differ in seeds and pools of
        tasks alone and their steps are small."""
        self._train(group, range(len(group)))
        return {name: _read_trained(self._folder_of(name)) for name in group}

    def train_one_of(self, group: Mapping[str, Mapping[str, Any]], name: str) -> TrainedRun:
        """The run NAME of a group. The others, which will be asked for as well, are trained beside it if they can."""
        self._train(group, [list(group).index(name)])
        return _read_trained(self._folder_of(name))

    def _folder_of(self, name: str) -> RunFolder:
        return RunFolder(self.folder / "runs" / name)

    def _train(self, group: Mapping[str, Mapping[str, Any]], wanted: Sequence[int]) -> None:
        """Call `train_runs` for those of a group that have not ended."""
        slots: list[tuple[Config, RunFolder] | None] = []
        for name, changed in group.items():
            folder = self._folder_of(name)
            config = self.change_settings(changed)
            config.resume = str(folder.path) if folder.has_checkpoint() else None
            slots.append(None if folder.read_summary().get("status") in FINAL else (config, folder))
        if any(result.status == "interrupted" for result in self.train_runs(slots, wanted, self.own)):
            raise KeyboardInterrupt

    def read_rows(self) -> list[Row]:
        """The rows of results.jsonl, without lines that are damaged or cut off."""
        try:
            lines = (self.folder / "results.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return []
        rows = []
        for line in lines:
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return [row for row in rows if isinstance(row, dict)]


def _read_trained(folder: RunFolder) -> TrainedRun:
    try:
        seconds = json.loads((folder.path / "cost.json").read_text(encoding="utf-8"))["cpu_seconds"]
    except (OSError, ValueError, KeyError, TypeError):
        seconds = None
    return TrainedRun(folder.read_summary(), folder, seconds)


def resize_test(config: Config, size: EpisodeSpec) -> Config:
    """The settings with test episodes of another size; training ones keep theirs."""
    data, algo, sizes = config.data, config.algo, ("ways", "shots")
    trained = {f"train_{k}": algo.get(f"train_{k}") or data[k] for k in sizes if f"train_{k}" in algo and k in data}
    asked = {"ways": size.ways, "shots": size.shots, "test_queries": size.queries}
    return dataclasses.replace(config, algo=Options({**algo, **trained}), data=Options({**data, **asked}))


def require_at_least(analysis: Any, **least: int) -> None:
    """Raise `SettingError` if a setting of the analysis is below its least value."""
    for name, bound in least.items():
        value = getattr(analysis, name)
        require(value >= bound, name, value, f"must be at least {bound}")


def require_different(analysis: Any, name: str) -> None:
    """Raise `SettingError` unless a setting lists different whole numbers of at least 1."""
    numbers = getattr(analysis, name)
    valid = bool(numbers) and min(numbers) >= 1 and len(set(numbers)) == len(numbers)
    require(valid, name, list(numbers), "must be different whole numbers of at least 1")


def known_values(rows: Sequence[Row], key: str, scale: float = 1.0) -> list[float]:
    """The numbers of the rows that have one, multiplied by `scale`."""
    return [scale * row[key] for row in rows if row.get(key) is not None]


def mask_diverged(losses: Tensor, scores: Tensor) -> Tensor:
    """The scores, NaN where the loss is not finite: the accuracy of outputs that are not finite is that of a guess, and
    would hide that adaptation diverged."""
    return scores.where(losses.isfinite(), torch.nan)


def run_analysis(analysis: Analysis, context: Context, log: Callable[[str], None]) -> dict[str, Any]:
    """Measure the missing cells and write the results; `log` a line for each cell, of quick ones for some of them.
    Return the content of results.json."""
    context.folder.mkdir(parents=True, exist_ok=True)
    cells, stored = list(analysis.cells(context)), context.read_rows()
    rows = {i: row for i, cell in enumerate(cells) if (row := find_row(stored, cell)) is not None}
    spent: list[float] = []
    logged = -math.inf
    if rows:
        log(f"measured before: {len(rows)} of {count_nouns(len(cells), 'cell')}")
    for i, cell in enumerate(cells):
        if i not in rows:
            start = time.monotonic()
            rows[i] = replace_nonfinite(cell | analysis.measure(context, cell))
            spent.append(time.monotonic() - start)
            _append_line(context.folder / "results.jsonl", json.dumps(rows[i]))
            if time.monotonic() >= logged + 1 or len(rows) == len(cells):
                log(describe_progress(len(rows), len(cells), rows[i], spent))
                logged = time.monotonic()
    return write_results(analysis, context, [rows[i] for i in range(len(cells))])


def find_row(rows: Sequence[Row], cell: Cell) -> Row | None:
    """The last row of a cell."""
    matches = (row for row in reversed(rows) if all(axis in row and row[axis] == cell[axis] for axis in cell))
    return next(matches, None)


def write_results(analysis: Analysis, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
    """Write results.json, results.csv and the figures. Return the content of results.json."""
    summary = analysis.summarise(context, rows)
    results = {"settings": context.config.analysis, "summary": summary, "rows": rows}
    RunFolder(context.folder).write_json("results.json", results)
    write_csv(context.folder / "results.csv", rows)
    with style():
        for count, drawing in enumerate(analysis.draw(rows, summary)):
            for ending in ("png", "svg"):
                stem = drawing.name if count else "figure"
                drawing.figure.savefig(context.folder / f"{stem}.{ending}", dpi=200)
    return results


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write numbers and texts; lists and dictionaries stand in results.json only."""
    flat = [{k: v for k, v in row.items() if not isinstance(v, (list, dict))} for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(map(escape_formula, columns))
        writer.writerows([escape_formula(row.get(key, "")) for key in columns] for row in flat)


def describe_progress(count: int, total: int, row: Row, spent: Sequence[float]) -> str:
    """A line for the terminal, without intervals, checksums and what is not so; `spent`: the seconds of each cell."""
    hidden = [k for k in row if "half" in k.split("_") or k in ("ci95", "episodes_sha256")]
    shown = {k: v for k, v in row.items() if k not in hidden and not isinstance(v, (list, dict))}
    texts = {k: f"{v:.3g}" if isinstance(v, float) else NOTHING if v is None else str(v) for k, v in shown.items()}
    numbers = "  ".join(k if shown[k] is True else f"{k} {text}" for k, text in texts.items() if shown[k] is not False)
    # From the second cell on, and by the median: the first one may train the runs of all.
    known = count < total and len(spent) > 1
    remaining = f"  {statistics.median_low(spent) * (total - count):.0f} s left" if known else ""
    return f"{count}/{total}{remaining}  {numbers}"


def _set(config: Config, key: str, value: Any) -> None:
    *path, last = key.split(".")
    node: Any = config
    for part in path:
        node = node[part] if isinstance(node, dict) else getattr(node, part, None)
    if isinstance(node, dict) and (last in node or path == ["data"]):
        node[last] = value
    elif dataclasses.is_dataclass(node) and hasattr(node, last):
        setattr(node, last, value)
    else:
        raise UserError(f"{key}={value}: this run has no such setting")


def _append_line(path: Path, line: str) -> None:
    """Append a line. If the last one was cut off, end it first, so that the new one does not join it."""
    with path.open("ab+") as file:
        size = file.seek(0, 2)
        file.seek(max(size - 1, 0))
        start = b"\n" if file.read(1) not in (b"", b"\n") else b""
        file.write(start + line.encode() + b"\n")
