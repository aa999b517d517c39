r"""Task shift: the run's weights on test tasks unlike those of training, each shift a row beside the unshifted one.

    difference = mean over tasks of (a_i - b_i), a_i the score of task i under the shift, b_i without

If the shift leaves the episodes as they are (their images rotated, a sine of other amplitude at the same points), the
interval is that of the pairs; else that of two independent samples (report/statistics/paired.py). Adaptation is that
of the run: a shift changes tasks, never the learner. Setlur et al. 2021, arXiv 2102.11503: rankings in and out of the
distribution of training need not agree.

A shift is given by a few keys:

    shots, ways                     the size of test episodes
    rotate, blur, contrast, noise   of all test images (metarun/data/shifts.py)
    classes                         of test episodes: train, val; within_groups (all of an episode of one group);
                                    new_groups, seen_groups (those of groups that training has none of, or some of)
    any other                       a setting data.*, with which the test episodes are drawn

`classes: train` tests on the classes of training, of which every image may have been seen: the difference to the
unshifted row is over-fitting to classes and images together. A row that this run cannot have (other ways with a network
that has one output per class, groups if the class names have none) gives the reason. If adaptation to a task diverged
there is no mean: the row has the median over tasks and the number of diverged ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarun.algorithms.inner_loop import fit_head
from metarun.analyses.analysis import Cell, Context, Row, find_row, mask_diverged, require_at_least
from metarun.analyses.figures import plot_known
from metarun.config.components import construct
from metarun.config.data_sets import EPISODE_SIZE
from metarun.data import shifts
from metarun.data.images import ImageData, Index
from metarun.data.mixed import MixedData
from metarun.data.pool import TaskPool
from metarun.data.shifts import ImageChange
from metarun.data.varying import VaryingShots
from metarun.errors import SettingError, UserError, nearest, require
from metarun.report.figures.drawing import COLOURS, GREY, Drawing, needs_log_scale, plain
from metarun.report.statistics.paired import compare
from metarun.storage.text import axis_label, difference_label, display_scale, format_metric
from metarun.training.evaluation import mean_and_interval
from metarun.training.experiment import Experiment, build_dataset, build_tested, option_name

UNSHIFTED = "none"
"""The name of the row without a shift."""

SIZES = ("shots", "ways")
CHANGES = tuple(f.name for f in dataclasses.fields(ImageChange))
CLASSES = ("train", "val", "within_groups", "new_groups", "seen_groups")
ROW, LEGEND = 0.24, 0.3
"""Heights in the figure, in inches."""

NO_IMAGES = "these data are no images"


class Impossible(Exception):
    """This run cannot be tested under the shift; the message is the reason."""


class Shift(NamedTuple):
    experiment: Experiment
    paired: bool  # task i is the unshifted task i, changed


@dataclass(frozen=True)
class TaskShift:
    tasks: int  # test episodes
    regression: dict[str, dict[str, Any]]  # name of a shift -> what it changes
    classification: dict[str, dict[str, Any]]
    by_data: dict[str, Any] = field(default_factory=dict)  # name of a data set -> its shifts beside those of its kind

    def __post_init__(self) -> None:
        require_at_least(self, tasks=2)
        for kind in ("regression", "classification"):
            require(UNSHIFTED not in getattr(self, kind), kind, UNSHIFTED, "is the name of the tasks without a shift")

    def cells(self, context: Context) -> Sequence[Cell]:
        """The row without a shift first, as the differences are to it; without shifts that change nothing here. Wrong
        settings are refused before anything is measured."""
        experiment = context.run.experiment
        sizes = {key: getattr(experiment.test_spec, key) for key in SIZES}
        found = self._find_shifts(experiment)
        names = [name for name, (_, changes) in found.items() if not changes.items() <= sizes.items()]
        for name in names:
            with contextlib.suppress(Impossible):
                self._apply(experiment, name)
        return [{"shift": name} for name in (UNSHIFTED, *names)]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        try:
            shift = self._apply(context.run.experiment, cell["shift"])
        except Impossible as error:
            return {"left_out": str(error)}
        experiment = shift.experiment
        steps = tuple(sorted({0, experiment.tested.test_inner_steps}))
        params, ways = context.run.params, experiment.test_spec.ways
        if experiment.tested.head and ways != context.run.experiment.test_spec.ways:  # a head of 0
            params = fit_head(params, experiment.dataset.outputs(ways))
        found = experiment.evaluator("test", self.tasks, steps)(experiment.tested, params)
        scores = mask_diverged(found.losses, found.scores)[found.headline].double()
        mean, half = mean_and_interval(scores)
        # A diverged task is as bad as can be, so that half of the tasks must diverge to make the median infinite.
        worst = -math.inf if found.higher_is_better else math.inf
        median = float(np.median(np.where(scores.isfinite(), scores, worst)))
        row: dict[str, Any] = {"mean": mean, "half": half, "median": median}
        row["not_finite"] = int((~scores.isfinite()).sum())
        if found.headline:
            row["before"] = mean_and_interval(found.scores[0])[0]
        if experiment.dataset.kind == "classification":
            row["chance"] = 1 / experiment.test_spec.ways
        row["scores"] = scores.tolist()
        if cell["shift"] == UNSHIFTED:
            return row
        unshifted = find_row(context.read_rows(), {"shift": UNSHIFTED}) or {}  # measured first
        pairs = compare(row["scores"], unshifted["scores"], experiment.tested.loss.higher_is_better)
        row |= {"difference": pairs.difference, "half_difference": pairs.half if shift.paired else pairs.unpaired_half}
        return row | {"paired": shift.paired} | ({"better_on": pairs.wins} if shift.paired else {})

    def _find_shifts(self, experiment: Experiment) -> dict[str, tuple[str, Any]]:
        """The shifts for the run's data, each with the key of its setting; of one name, that of the data set."""
        data, kind = option_name("data", experiment.config), experiment.dataset.kind
        groups = {f"analysis.{kind}": getattr(self, kind), f"analysis.by_data.{data}": self.by_data.get(data, {})}
        return {name: (f"{key}.{name}", group[name]) for key, group in groups.items() for name in group}

    def _apply(self, experiment: Experiment, name: str) -> Shift:
        if name == UNSHIFTED:
            return apply_shift(experiment, {}, name)
        key, changes = self._find_shifts(experiment)[name]
        return apply_shift(experiment, changes, key)

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        loss = context.run.experiment.tested.loss
        compared = [r for r in rows if r.get("difference") is not None]
        worst = (min if loss.higher_is_better else max)(compared, key=lambda r: r["difference"], default=None)
        lines = [f"without a shift: {format_metric(loss.metric, rows[0]['mean'], rows[0]['half'])}"]
        if worst:
            change = format_metric(loss.metric, worst["difference"], worst["half_difference"])
            worse = worst["difference"] < 0 if loss.higher_is_better else worst["difference"] > 0
            kind = "largest change for the worse" if worse else "no change for the worse; the smallest for the better"
            lines.append(f"{kind}, {worst['shift']}: {change}")
        diverged = [r for r in rows if r.get("not_finite")]
        lines += [f"no mean: {r['shift']} (diverged: {r['not_finite']} of {self.tasks} tasks)" for r in diverged]
        by_reason: dict[str, list[str]] = {}
        for row in rows:
            if "left_out" in row:
                by_reason.setdefault(row["left_out"], []).append(row["shift"])
        lines += [f"left out: {', '.join(names)} ({reason})" for reason, names in by_reason.items()]
        return {
            "metric": loss.metric,
            "tasks": self.tasks,
            "shifts": {r["shift"]: {k: v for k, v in r.items() if k not in ("shift", "scores")} for r in rows},
            "worst": worst["shift"] if worst else None,
            "message": "\n".join(lines),
        }

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        """One line a shift, the unshifted one first; a row that was left out has its reason in its line, but shifts of
        images have none where there are no images."""
        rows = [row for row in rows if row.get("left_out") != NO_IMAGES]
        metric, height = summary["metric"], 0.95 + LEGEND + ROW * len(rows)
        drawn = Figure(figsize=(9.2, height))
        foot, top = (0.5 + LEGEND) / height, 1 - 0.3 / height
        left, right = (drawn.add_axes((x, foot, w, top - foot)) for x, w in ((0.19, 0.42), (0.64, 0.345)))
        _draw_scores(left, rows, display_scale(metric))
        right.axvline(0, color=GREY, linewidth=0.9)
        for y, row in enumerate(rows):
            if row.get("not_finite"):
                text = f"diverged: {row['not_finite']} of {len(row['scores'])} tasks"
                shown = right.text(0.99, y, text, transform=right.get_yaxis_transform(), ha="right", va="center")
                shown.set(fontsize=6.5, color=COLOURS[1])
            if row.get("difference") is not None:
                value, half = (display_scale(metric) * (row[key] or 0) for key in ("difference", "half_difference"))
                face = COLOURS[0] if row["paired"] else "white"
                right.errorbar([value], [y], xerr=[half], fmt="o", color=COLOURS[0], mfc=face, capsize=3)
        names = ["no shift" if r["shift"] == UNSHIFTED else r["shift"].replace("_", " ") for r in rows]
        for axes in (left, right):
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.set_yticks(range(len(rows)))
        left.set_yticklabels([plain(name, 30) for name in names])
        right.set_yticklabels([])
        left.set(title=f"test {plain(metric)}, 95 % intervals", xlabel=axis_label(metric))
        right.set(title="difference to the tasks without a shift")
        right.set(xlabel=f"{difference_label(metric)}; hollow: other episodes")
        drawn.legend(*left.get_legend_handles_labels(), loc="lower left", bbox_to_anchor=(0.18, 0.0), ncols=4)
        measured = [(name, r) for name, r in zip(names, rows, strict=True) if "mean" in r]
        values = " ".join(f"{name}: {format_metric(metric, r['mean'], r['half'])}." for name, r in measured)
        alt = f"Test {metric} under {len(rows) - 1} shifts of the tasks. {values}"
        return [Drawing("task_shift", alt, drawn)]


def apply_shift(experiment: Experiment, changes: Mapping[str, Any], name: str) -> Shift:
    """The experiment with other test tasks. Raise `UserError`, with the shift's key `name`, for a change that no run
    could have, and `Impossible` for one that this run cannot have."""
    sizes = {k: v for k, v in changes.items() if k in SIZES}
    for key, value in sizes.items():
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        require(whole, f"{name}.{key}", value, "must be a whole number of at least 1")
    others = {k: v for k, v in changes.items() if k not in sizes}
    dataset = experiment.dataset
    if others:
        dataset = shifts.ShiftedDataset(dataset, _shift_episodes(experiment, others, name))
    spec, learner = experiment.test_spec._replace(**sizes), experiment.tested
    if spec.ways != experiment.test_spec.ways:
        try:
            learner = build_tested(experiment.config, dataset, experiment.train_spec.ways, spec.ways)
        except SettingError as error:
            raise Impossible(
                f"the network has one output per class, so it keeps to {experiment.test_spec.ways} ways"
            ) from error
    try:
        dataset.check("test", spec)
    except SettingError as error:
        raise Impossible(str(error)) from error
    shifted = dataclasses.replace(experiment, dataset=dataset, test_spec=spec, tested=learner)
    return Shift(shifted, paired=not sizes and "classes" not in changes)


def _shift_episodes(experiment: Experiment, changes: Mapping[str, Any], name: str) -> shifts.Episodes:
    """Apply settings first, then classes, then changes of images."""
    data, pooled = experiment.dataset, isinstance(experiment.dataset, TaskPool)
    if isinstance(data, (TaskPool, VaryingShots)):  # which leave test tasks as they are
        data = data.dataset if isinstance(data, TaskPool) else data.largest
    of_images = (*CHANGES, "classes") if isinstance(data, (ImageData, MixedData)) else ()
    settings = {k: v for k, v in changes.items() if k not in of_images}
    tested: Any = data
    if settings:
        config = experiment.config
        valid = [k for k in config.data if k not in (*EPISODE_SIZE, "_target_")]
        for key in settings:
            if key not in valid and key in (*CHANGES, "classes") and data.kind == "classification":
                raise Impossible(NO_IMAGES)
            if key not in valid:
                choices = nearest(key, (*valid, *SIZES, *of_images))
                raise UserError(f"{name}.{key}: no such shift of these data, {choices}")
        tested = build_dataset(dataclasses.replace(config, data=config.data | settings))
    classes = changes.get("classes")
    if classes is not None and "classes" not in settings:
        require(classes in CLASSES, f"{name}.classes", classes, "choices: " + ", ".join(CLASSES))
        tested = _change_classes(tested, classes, pooled)
    images = {k: v for k, v in changes.items() if k in CHANGES and k in of_images}
    if isinstance(data, (ImageData, MixedData)) and images:
        tested = shifts.ChangedImages(tested, data.pixels, construct(name, ImageChange, images))
    return tested


def _change_classes(data: Any, classes: str, pooled: bool) -> shifts.Episodes:
    if isinstance(data, MixedData):  # of each set
        changed = {}
        for name, part in data.sets.items():
            try:
                changed[name] = _change_classes(part, classes, pooled)
            except Impossible as error:
                raise Impossible(f"{name}: {error}") from error
        return dataclasses.replace(data, sets=changed)
    splits = data.source.splits
    if classes == "within_groups":
        _require_groups(shifts.group_classes(data, splits["test"]))
        return shifts.WithinGroups(data)
    if classes == "train" and pooled:
        raise Impossible("training saw the tasks of its pool, not all of these classes")
    return shifts.with_test_classes(data, splits[classes] if classes in splits else select_groups(data, classes))


def select_groups(data: ImageData, classes: str) -> Index:
    """The test classes of groups that training has some of (`seen_groups`) or none of (`new_groups`)."""
    test = data.source.splits["test"]
    groups = shifts.group_classes(data, test)
    _require_groups(groups)
    seen = shifts.group_classes(data, data.source.splits["train"])
    chosen = sorted(i for g, ids in groups.items() if (g in seen) == (classes == "seen_groups") for i in ids)
    if not chosen:
        raise Impossible("no test class is of such a group")
    if len(chosen) == len(test):
        raise Impossible("all test classes are of such groups: it is the row without a shift")
    return np.array(chosen, dtype=np.intp)


def _require_groups(groups: Mapping[str, Index]) -> None:
    if not groups:
        raise Impossible("the names of the classes tell no groups, as GROUP/CLASS would")


def _draw_scores(axes: Axes, rows: Sequence[Row], scale: float) -> None:
    for kind, marker, colour, label in (
        ("chance", "|", GREY, "chance"),
        ("before", "x", COLOURS[1], "before adaptation"),
    ):
        values = [None if r.get(kind) is None else scale * r[kind] for r in rows]
        plot_known(axes, values, range(len(rows)), marker=marker, color=colour, label=label, markersize=6)
    shown = [(y, r) for y, r in enumerate(rows) if r.get("mean") is not None]
    x, half = (np.array([scale * (r[key] or 0) for _, r in shown]) for key in ("mean", "half"))
    broken = [(scale * r["median"], y) for y, r in enumerate(rows) if r.get("not_finite") and r["median"] is not None]
    if needs_log_scale([x, np.array([m for m, _ in broken])]):
        axes.set_xscale("log")
    if shown:
        axes.errorbar(x, [y for y, _ in shown], xerr=half, fmt="o", color=COLOURS[0], capsize=3, label="mean of tasks")
    if broken:
        axes.plot(*zip(*broken, strict=True), "D", color=COLOURS[0], mfc="white", label="median, some tasks diverged")
    if rows[0].get("mean") is not None:
        axes.axvline(scale * rows[0]["mean"], color=COLOURS[0], linewidth=0.8, linestyle=(0, (3, 2)))
    for at, row in enumerate(rows):
        if "left_out" in row:
            text = plain(f"left out: {row['left_out']}", 76)
            axes.text(0.01, at, text, transform=axes.get_yaxis_transform(), va="center", fontsize=6.5, color=GREY)
