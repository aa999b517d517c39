r"""Cross-domain test: the run's weights on test tasks of other data sets, a row each, beside those of its own.

    difference = mean_i a_i - mean_j b_j,   half = 1.96 sqrt(var(a)/n + var(b)/n)

Symbols: a_i the score of test task i of a set, b_j of test task j of the run's own data, n tasks of each. The episodes
of two sets are independent samples (report/statistics/paired.py); the interval is for new tasks of both, and not for
other seeds of the training. Ways, shots and queries are those of the run's test in all sets. So are the size, the
channels and the normalisation of images, which the network needs; all other settings are those of the set.

A set that cannot supply such episodes is left out, with the reason. If adaptation to a task diverged there is no mean.
Chen et al. 2019, arXiv 1904.04232, test from miniImageNet to CUB in this way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metarun.analyses.analysis import Cell, Context, Row, find_row, mask_diverged, require_at_least
from metarun.config.components import construct, locate
from metarun.config.data_sets import FORM, INPUTS
from metarun.data.shifts import ShiftedDataset
from metarun.errors import SettingError, UserError, require
from metarun.report.figures.drawing import COLOURS, GREY, Drawing, plain
from metarun.report.statistics.paired import compare
from metarun.storage.text import axis_label, display_scale, format_metric
from metarun.training.evaluation import mean_and_interval
from metarun.training.experiment import Experiment, option_name
from metarun.types import Dataset, DatasetOptions, optional

STATISTICS = ("set", "run")
HEADINGS = ("data", "classes", "ways", "shots", "test", "difference", "changed")
ROW = 0.28
"""The height of a row in the figure, in inches."""


@dataclass(frozen=True)
class CrossDomain:
    sets: dict[str, Any] | None  # name -> settings (config/data_sets.py)
    tasks: int  # test episodes of each set
    statistics: str

    def __post_init__(self) -> None:
        require(bool(self.sets), "sets", self.sets, FORM)
        require_at_least(self, tasks=2)
        require(self.statistics in STATISTICS, "statistics", self.statistics, "choices: " + ", ".join(STATISTICS))

    def cells(self, context: Context) -> Sequence[Cell]:
        """The run's own data first, as the differences are to it. Wrong settings and files that are missing are
        refused before anything is measured."""
        experiment, named = context.run.experiment, self.sets or {}
        for name in named:
            self._open(experiment, name)
        return [
            {"data": option_name("data", experiment.config), "own": True},
            *({"data": n, "own": False} for n in named),
        ]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        experiment, changed = context.run.experiment, ""
        spec, learner = experiment.test_spec, experiment.tested
        dataset: Dataset = experiment.dataset
        if not cell["own"]:
            dataset, changed = self._open(experiment, cell["data"])
        row: Row = {"classes": _count_classes(dataset), "ways": spec.ways, "shots": spec.shots}
        try:
            dataset.check("test", spec)
        except SettingError as error:
            return row | {"left_out": str(error)}
        if self.statistics == "run" and not cell["own"]:
            dataset = ShiftedDataset(experiment.dataset, dataset)
        evaluator = replace(experiment, dataset=dataset).evaluator("test", self.tasks, (learner.test_inner_steps,))
        found = evaluator(learner, context.run.params)
        scores = mask_diverged(found.losses, found.scores)[found.headline].double()
        mean, half = mean_and_interval(scores)
        row |= {"mean": mean, "half": half, "not_finite": int((~scores.isfinite()).sum())}
        if not cell["own"]:
            own = find_row(context.read_rows(), {"own": True}) or {}  # measured first
            pairs = compare(scores, [np.nan if s is None else s for s in own["scores"]], found.higher_is_better)
            row |= {"difference": pairs.difference, "half_difference": pairs.unpaired_half}
        return row | {"changed": changed, "episodes": found.episodes_sha256[:12], "scores": scores.tolist()}

    def _open(self, experiment: Experiment, name: str) -> tuple[Dataset, str]:
        """A data set with the inputs of the run, and what that changes of its own settings."""
        key, settings = f"analysis.sets.{name}", {**(self.sets or {})[name]}
        option = settings.pop("data", name)
        pixels = optional(experiment.dataset, DatasetOptions, "pixels")
        needed = dict(zip(INPUTS, (pixels.size, pixels.channels, pixels.normalize), strict=True)) if pixels else {}
        changes = {k: v for k, v in needed.items() if settings.get(k, v) != v}
        target = locate("data", settings, experiment.config.trusted_modules)
        try:
            dataset: Dataset = construct(key, target, settings | changes)
            shape, kind = dataset.input_shape(), dataset.kind
            dataset.facts()  # reads its files
        except SettingError as error:
            raise error if error.key.startswith("analysis.") else error.under(key) from error
        except UserError as error:
            raise error if str(error).startswith("analysis.") else UserError(f"{key}: {error}") from error
        wanted = experiment.dataset.input_shape()
        if kind != experiment.dataset.kind or shape != wanted:
            gives = f"{kind} of inputs {list(shape)}; the run learned {experiment.dataset.kind} of {list(wanted)}"
            raise SettingError(key, option, f"is {gives}")
        return dataset, ", ".join(f"{k} {settings[k]} to {v}" for k, v in changes.items())

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        metric = context.run.experiment.tested.loss.metric
        table = [_format_row(metric, row) for row in rows]
        return {
            "metric": metric,
            "tasks": self.tasks,
            "sets": {r["data"]: {k: v for k, v in r.items() if k not in ("data", "scores")} for r in rows},
            "message": "\n".join(align([(*HEADINGS[:4], f"test {metric}", *HEADINGS[5:]), *table])),
        }

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        """A line for each set, the run's own first: the metric, and the difference to the own data."""
        metric, scale = summary["metric"], display_scale(summary["metric"])
        height = 0.95 + ROW * len(rows)
        drawn = Figure(figsize=(9.2, height))
        foot, top = 0.5 / height, 1 - 0.3 / height
        left, right = (drawn.add_axes((x, foot, w, top - foot)) for x, w in ((0.19, 0.42), (0.64, 0.345)))
        right.axvline(0, color=GREY, linewidth=0.9)
        for y, row in enumerate(rows):
            for axes, mean, half in ((left, "mean", "half"), (right, "difference", "half_difference")):
                if row.get(mean) is not None:
                    value, error = scale * row[mean], scale * (row[half] or 0)
                    face = COLOURS[0] if row["own"] else "white"
                    axes.errorbar([value], [y], xerr=[error], fmt="o", color=COLOURS[0], mfc=face, capsize=3)
            if "left_out" in row:
                text = plain(f"left out: {row['left_out']}", 76)
                left.text(0.01, y, text, transform=left.get_yaxis_transform(), va="center", fontsize=6.5, color=GREY)
            if "mean" in row and metric == "accuracy":
                left.plot([100 / row["ways"]], [y], "|", color=GREY, markersize=8)
        for axes in (left, right):
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.set_yticks(range(len(rows)))
        left.set_yticklabels([plain(f"{row['data']}, the run's" if row["own"] else row["data"], 26) for row in rows])
        right.set_yticklabels([])
        chance = "; grey: chance" if metric == "accuracy" else ""
        left.set(title=f"test {plain(metric)}, 95 % intervals{chance}", xlabel=axis_label(metric))
        right.set(title="difference to the run's own data", xlabel=f"difference in {axis_label(metric)}")
        values = (f"{r['data']}: {format_metric(metric, r['mean'], r['half'])}." for r in rows if "mean" in r)
        return [Drawing("cross_domain", f"Test {metric} by data set. {' '.join(values)}", drawn)]


def _count_classes(dataset: Dataset) -> int | None:
    """The classes of the test split."""
    classes = dataset.facts().get("classes")
    return classes.get("test") if isinstance(classes, Mapping) else None


def _format_row(metric: str, row: Row) -> tuple[str, ...]:
    """The texts of a row below `HEADINGS`."""
    name = f"{row['data']} (the run's)" if row["own"] else row["data"]
    size = [str(row["classes"] or ""), str(row["ways"]), str(row["shots"])]
    if "left_out" in row:
        return name, *size, f"left out: {row['left_out']}", "", ""
    diverged = f"no mean, {row['not_finite']} tasks diverged"
    mean = diverged if row["not_finite"] else format_metric(metric, row["mean"], row["half"])
    difference = row.get("difference")
    change = "" if difference is None else format_metric(metric, difference, row["half_difference"])
    return name, *size, mean, change, row["changed"]


def align(table: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table of texts, in columns two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table]
