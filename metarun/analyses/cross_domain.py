r"""Cross-domain test: the weights of a run, or of several, on test tasks of other data sets, beside those of its own.

    difference = mean_i a_i - mean_j b_j,   half          = 1.96 sqrt(var(a)/n + var(b)/n)
    to_first   = mean_i (a_i - c_i),        half_to_first = 1.96 sd(a - c) / sqrt(n)

Symbols: a_i the score of test task i of a set, b_j of test task j of the run's own data, c_i of task i of the set under
the first run; n tasks of each. The episodes of two sets are independent samples (report/statistics/paired.py). Those of
two runs are the same: task i of a set has the same pictures for all runs, whatever their size. Intervals are for new
tasks, and not for other seeds of the training.

Ways, shots and queries are those of the first run's test for all sets and runs. The size, the channels and the
normalisation of images are those of each run, whose network needs them; all other settings are those of the set.

A set that cannot supply such episodes is left out, with the reason. If adaptation to a task diverged there is no mean.
Chen et al. 2019, arXiv 1904.04232, test from miniImageNet to CUB in this way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metarun.analyses.analysis import Cell, Context, Row, SourceRun, find_row, mask_diverged, require_at_least
from metarun.analyses.other_data import describe_changes, fit_inputs, open_set
from metarun.config.data_sets import FORM
from metarun.config.schema import Options
from metarun.data.shifts import ShiftedDataset
from metarun.errors import SettingError, UserError, require
from metarun.report.figures.drawing import COLOURS, GREY, Drawing, look, plain
from metarun.report.read.runs import find_runs
from metarun.report.statistics.paired import Comparison, compare
from metarun.report.tables.table import Table
from metarun.storage.text import NOTHING, axis_label, difference_label, display_scale, format_metric
from metarun.training.evaluation import mean_and_interval
from metarun.training.experiment import build_dataset, option_name
from metarun.types import Dataset, DatasetOptions, optional

STATISTICS = ("set", "run")
HEADINGS = ("data", "classes", "ways", "shots", "test", "difference", "changed")
ROW = 0.28
"""The height of a row in the figure, in inches."""


@dataclass(frozen=True)
class CrossDomain:
    sets: dict[str, Any] | None  # name -> settings (config/data_sets.py)
    others: tuple[str, ...]  # folders of further runs, or that hold some
    tasks: int  # test episodes of each set
    statistics: str

    def __post_init__(self) -> None:
        require(bool(self.sets), "sets", self.sets, FORM)
        require_at_least(self, tasks=2)
        require(self.statistics in STATISTICS, "statistics", self.statistics, "choices: " + ", ".join(STATISTICS))

    def cells(self, context: Context) -> Sequence[Cell]:
        """Run by run, and of each the first run's own data first: what others are compared with comes before them.
        Wrong settings and files that are missing are refused before anything is measured."""
        runs = self._open_runs(context)
        first = next(iter(runs.values()))
        own = {"data": option_name("data", first.experiment.config), "own": True}
        columns: list[Cell] = [own, *({"data": name, "own": False} for name in self.sets or {})]
        checked = []
        for name, run in runs.items():
            metric, ours = (found.experiment.tested.loss.metric for found in (run, first))
            require(metric == ours, "analysis.others", name, f"reports {metric}, and the first run {ours}")
            dataset = run.experiment.dataset
            inputs = dataset.kind, dataset.input_shape(), optional(dataset, DatasetOptions, "pixels")
            for column in columns if inputs not in checked else ():
                self._open_data(name, run, first, column)
            checked.append(inputs)
        return [{"run": name, **c} for name in runs for c in columns] if len(runs) > 1 else columns

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        runs = self._open_runs(context)
        (first_name, first), *_ = runs.items()
        name = cell.get("run", first_name)
        run, spec = runs[name], first.experiment.test_spec
        experiment, learner = run.experiment, run.experiment.tested
        dataset, changed = self._open_data(name, run, first, cell)
        who = {"algo": option_name("algo", experiment.config), "seed": experiment.config.seed}
        row: Row = who if "run" in cell else {}
        row |= {"classes": _count_classes(dataset), "ways": spec.ways, "shots": spec.shots}
        try:
            dataset.check("test", spec)
        except SettingError as error:
            return row | {"left_out": str(error)}
        if self.statistics == "run" and dataset is not experiment.dataset:
            dataset = ShiftedDataset(experiment.dataset, dataset)
        evaluator = replace(experiment, dataset=dataset).evaluator("test", self.tasks, (learner.test_inner_steps,))
        found = evaluator(learner, run.params)
        scores = mask_diverged(found.losses, found.scores)[found.headline].double()
        mean, half = mean_and_interval(scores)
        row |= {"mean": mean, "half": half, "not_finite": int((~scores.isfinite()).sum())}
        measured = context.read_rows()
        if not cell["own"]:
            own = find_row(measured, {k: cell[k] for k in cell if k == "run"} | {"own": True}) or {}
            pairs = _compare(scores.tolist(), own, found.higher_is_better)
            row |= {"difference": pairs.difference, "half_difference": pairs.unpaired_half}
        if name != first_name:
            other = find_row(measured, cell | {"run": first_name}) or {}
            pairs = _compare(scores.tolist(), other, found.higher_is_better)
            row |= {"to_first": pairs.difference, "half_to_first": pairs.half}
        return row | {"changed": changed, "episodes": found.episodes_sha256[:12], "scores": scores.tolist()}

    def _open_runs(self, context: Context) -> dict[str, SourceRun]:
        """The run to analyse, then the others, by name."""
        source = context.require_source().path
        first = context.open_for_test(source)
        runs = {source: first}
        for other in self.others:
            try:
                folders = find_runs(Path(other))
            except UserError as error:
                raise UserError(f"analysis.others: {error}") from error
            for folder in (f for f in folders if f.resolve() not in [path.resolve() for path in runs]):
                try:
                    runs[folder] = context.open_for_test(folder, first.experiment.test_spec)
                except UserError as error:
                    raise UserError(f"analysis.others={folder}: {error}") from error
        return dict(zip(name_apart(list(runs)), runs.values(), strict=True))

    def _open_data(self, name: str, run: SourceRun, first: SourceRun, cell: Cell) -> tuple[Dataset, str]:
        """The data set of a cell with the inputs of a run, and what that changes of its own settings."""
        config, experiment = first.experiment.config, run.experiment
        if not cell["own"]:
            whose = "the run" if run is first else name
            return open_set(cell["data"], (self.sets or {})[cell["data"]], experiment, whose)
        if run is first:
            return first.experiment.dataset, ""
        changes = fit_inputs(config.data, experiment)
        try:
            dataset = first.experiment.dataset
            if changes:
                dataset = build_dataset(replace(config, data=Options({**config.data} | changes)))
            dataset.facts()  # reads its files
        except SettingError as error:
            raise error if error.key.startswith("analysis.") else error.under("analysis.others") from error
        except UserError as error:
            raise UserError(f"analysis.others: {error}") from error
        theirs, ours = (f"{d.kind} of inputs {list(d.input_shape())}" for d in (dataset, experiment.dataset))
        require(
            theirs == ours, "analysis.others", name, f"learned {ours}; the test tasks of the first run are {theirs}"
        )
        return dataset, describe_changes(changes, config.data)

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        metric = context.open_for_test(context.require_source().path).experiment.tested.loss.metric
        names = list(dict.fromkeys(row["run"] for row in rows if "run" in row))
        summary: dict[str, Any] = {"metric": metric, "tasks": self.tasks, "sets": _by_set(rows, names[:1])}
        summary |= {"runs": {name: _by_set(rows, [name]) for name in names}} if names else {}
        tables = compare_runs(metric, rows, self.tasks) if names else [describe_sets(metric, rows)]
        lines = [line for table in tables for line in ("", table.title, *align([table.columns, *table.rows]))]
        notes = [line for table in tables for line in table.note.splitlines()]
        kept = [{"title": t.title, "columns": t.columns, "rows": t.rows, "note": t.note} for t in tables]
        return summary | {"tables": kept, "message": "\n".join([*lines[1 if names else 2 :], *notes])}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        """A line for each set, and in it for each run: the metric, and the difference to the own data or the first run.
        Filled are the own data of a single run."""
        metric, scale, names = summary["metric"], display_scale(summary["metric"]), list(summary.get("runs", ()))
        titles = list(dict.fromkeys(map(_title, rows)))
        ordered = sorted(rows, key=lambda row: titles.index(_title(row)))  # stable: run by run
        places = [y + bool(names) * (1 + titles.index(_title(row))) for y, row in enumerate(ordered)]
        height, start = 0.95 + ROW * (1 + places[-1]), 0.27 if names else 0.19
        drawn = Figure(figsize=(9.2, height))
        foot, top = 0.5 / height, 1 - 0.3 / height
        left, right = (drawn.add_axes((x, foot, w, top - foot)) for x, w in ((start, 0.61 - start), (0.64, 0.345)))
        right.axvline(0, color=GREY, linewidth=0.9)
        change = ("to_first", "half_to_first") if names else ("difference", "half_difference")
        for y, row in zip(places, ordered, strict=True):
            colour, marker = (look(names.index(row["run"]))[::2]) if names else (COLOURS[0], "o")
            for axes, (mean, half) in ((left, ("mean", "half")), (right, change)):
                face = colour if names or row["own"] else "white"
                if row.get(mean) is not None:
                    value, error = scale * row[mean], scale * (row[half] or 0)
                    axes.errorbar([value], [y], xerr=[error], fmt=marker, color=colour, mfc=face, capsize=3)
            if "left_out" in row:
                text = plain(f"left out: {row['left_out']}", 60 if names else 76)
                left.text(0.01, y, text, transform=left.get_yaxis_transform(), va="center", fontsize=6.5, color=GREY)
            if "mean" in row and metric == "accuracy":
                left.plot([100 / row["ways"]], [y], "|", color=GREY, markersize=8)
        for axes in (left, right):
            axes.set_ylim(places[-1] + 0.6, -0.6)
            axes.set_yticks(places)
        left.set_yticklabels([_label(row) for row in ordered])
        for y, title in zip(places[:: len(names)], titles, strict=True) if names else ():
            at: dict[str, Any] = {"transform": left.get_yaxis_transform(), "ha": "right", "va": "center"}
            left.text(-0.025, y - 1, plain(title, 32), **at, weight="bold")
        right.set_yticklabels([])
        chance = "; grey: chance" if metric == "accuracy" else ""
        left.set(title=f"test {plain(metric)}, 95 % intervals{chance}", xlabel=axis_label(metric))
        base = f"difference to {plain(names[0], 30)}" if names else "difference to the run's own data"
        right.set(title=base, xlabel=difference_label(metric))
        values = (
            f"{_title(r)}, {_label(r)}: {format_metric(metric, r['mean'], r['half'])}." for r in ordered if "mean" in r
        )
        return [Drawing("cross_domain", f"Test {metric} by data set. {' '.join(values)}", drawn)]


def describe_sets(metric: str, rows: Sequence[Row]) -> Table:
    """A row for each data set, of a single run."""
    columns = (*HEADINGS[:4], f"test {metric}", *HEADINGS[5:])
    return Table("The run on other data sets", columns, tuple(_format_row(metric, row) for row in rows))


def compare_runs(metric: str, rows: Sequence[Row], tasks: int) -> list[Table]:
    """Runs by data sets, with what was left out or changed, and the differences to the first run."""
    titles = list(dict.fromkeys(map(_title, rows)))
    runs: dict[str, dict[str, Row]] = {}
    for row in rows:
        runs.setdefault(row["run"], {})[_title(row)] = row
    means, differences = [], []
    for name, by_set in runs.items():
        found = [by_set[title] for title in titles]
        means.append((name, found[0]["algo"], str(found[0]["seed"]), *(_format_mean(metric, row) for row in found)))
        changes = (format_metric(metric, row.get("to_first"), row.get("half_to_first")) for row in found)
        differences.append((name, *changes))
    kinds, notes = {"left out": "left_out", "changed": "changed"}, []
    of_rows = [(f"{kind}, {_title(r)}: {r[key]}", r["run"]) for kind, key in kinds.items() for r in rows if r.get(key)]
    for note in dict.fromkeys(note for note, _ in of_rows):
        named = [name for text, name in of_rows if text == note]
        notes.append(note if len(named) == len(runs) else f"{note} ({', '.join(named)})")
    size = f"{rows[0]['ways']}-way " if rows[0]["ways"] > 1 else ""
    title = f"test {metric}, {size}{rows[0]['shots']}-shot, {tasks} tasks of each data set"
    return [
        Table(title, ("run", "algo", "seed", *titles), tuple(means), "\n".join(notes)),
        Table(f"difference to {next(iter(runs))}, task by task", ("run", *titles), tuple(differences[1:])),
    ]


def _title(row: Row) -> str:
    """The name of a column: a set may have the name of the run's own data."""
    return f"{row['data']} ({'the first run' if 'run' in row else 'the run'}'s)" if row["own"] else row["data"]


def _label(row: Row) -> str:
    """The name of a line of the figure."""
    return plain(
        row.get("run") or (f"{row['data']}, the run's" if row["own"] else row["data"]), 32 if "run" in row else 26
    )


def name_apart(folders: Sequence[Path]) -> list[str]:
    """Return their names, or where two are the same what is left of the paths without the ends that all share."""
    names = [folder.name for folder in folders]
    if len(set(names)) == len(names):
        return names
    parts = [[*folder.absolute().parts] for folder in folders]
    for end in (0, -1):
        while all(len(p) > 1 for p in parts) and len({p[end] for p in parts}) == 1:
            for p in parts:
                del p[end]
    return ["/".join(p) for p in parts]


def _by_set(rows: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    """The rows of these runs, or all without any, by the titles of their columns."""
    kept = [row for row in rows if not names or row["run"] in names]
    return {_title(row): {k: v for k, v in row.items() if k not in ("run", "data", "scores")} for row in kept}


def _compare(scores: Sequence[float], other: Row, higher_is_better: bool) -> Comparison:
    """Scores with those of a row that was measured before."""
    return compare(scores, [np.nan if score is None else score for score in other["scores"]], higher_is_better)


def _count_classes(dataset: Dataset) -> int | None:
    """The classes of the test split."""
    classes = dataset.facts().get("classes")
    return classes.get("test") if isinstance(classes, Mapping) else None


def _format_mean(metric: str, row: Row) -> str:
    if "left_out" in row:
        return NOTHING
    return (
        f"no mean, {row['not_finite']} tasks diverged"
        if row["not_finite"]
        else format_metric(metric, row["mean"], row["half"])
    )


def _format_row(metric: str, row: Row) -> tuple[str, ...]:
    """The texts of a row below `HEADINGS`."""
    size = [str(row["classes"] or ""), str(row["ways"]), str(row["shots"])]
    if "left_out" in row:
        return _title(row), *size, f"left out: {row['left_out']}", "", ""
    difference = row.get("difference")
    change = "" if difference is None else format_metric(metric, difference, row["half_difference"])
    return _title(row), *size, _format_mean(metric, row), change, row["changed"]


def align(table: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table of texts, in columns two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table]
