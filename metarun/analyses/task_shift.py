r"""Task shift: the run's weights on test tasks that training did not have, each shift a row beside the unshifted one.

    difference = mean over tasks of (a_i - b_i), a_i the score of task i under the shift, b_i without

Where the shift leaves the episodes as they are (their images turned, a sine of other amplitude at the same points),
the interval is that of the pairs; else that of two independent samples (metarun/statistics/paired.py). How a task is
adapted to is that of the run: a shift changes tasks, never the learner. Setlur et al. 2021, arXiv 2102.11503: rankings
in and out of the distribution of training need not agree.

`classes: train` tests on the classes of training, of which every image may have been seen: what is lost from there to
the unshifted row is over-fitting to classes and images together. A row that this run cannot have (other ways with a
network that has one output per class, groups where names tell none) says why. Where a task's adaptation diverged there
is no mean: the median over tasks is told beside it, and how many diverged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from metarun.analyses.context import Context, sound
from metarun.analyses.frame import Cell, Row, measured
from metarun.analyses.shift_figure import draw_shifts
from metarun.analyses.shifted import Impossible, Shift, same_size, shifted
from metarun.errors import require
from metarun.report.figures.drawing import Drawing
from metarun.statistics.paired import compare
from metarun.storage.text import format_metric
from metarun.training.evaluation import mean_and_interval
from metarun.training.experiment import Experiment, option_name

OWN = "none"
"""The name of the tasks without a shift."""


@dataclass(frozen=True)
class TaskShift:
    tasks: int  # test episodes
    regression: dict[str, dict[str, Any]]  # name of a shift -> what it changes
    classification: dict[str, dict[str, Any]]
    by_data: dict[str, Any] = field(default_factory=dict)  # name of a data set -> shifts in place of its kind's

    def __post_init__(self) -> None:
        require(self.tasks >= 2, "tasks", self.tasks, "must be at least 2")
        for kind in ("regression", "classification"):
            require(OWN not in getattr(self, kind), kind, OWN, "is the name of the tasks without a shift")

    def cells(self, context: Context) -> Sequence[Cell]:
        """The tasks without a shift first: the others are told as differences to them. Wrong settings are refused
        before anything is measured, and shifts that leave this run's tasks as they are do not come."""
        experiment, _ = context.own
        _, shifts = self._shifts(experiment)
        told = [name for name, changes in shifts.items() if not same_size(experiment, changes)]
        for name in told:
            self._shift(experiment, name)
        return [{"shift": name} for name in (OWN, *told)]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        experiment, params = context.own
        shift = self._shift(experiment, cell["shift"])
        if isinstance(shift, Impossible):
            return {"left_out": str(shift)}
        tested = shift.experiment
        steps = tuple(sorted({0, tested.tested.test_inner_steps}))
        found = tested.evaluator("test", self.tasks, steps)(tested.tested, params)
        scores = sound(found.losses, found.scores)[found.headline].double()
        mean, half = mean_and_interval(scores)
        row: dict[str, Any] = {"mean": mean, "half": half, "median": _median(scores, found.higher_is_better)}
        row["not_finite"] = int((~scores.isfinite()).sum())
        if found.headline:
            row["before"] = mean_and_interval(found.scores[0])[0]
        if tested.dataset.kind == "classification":
            row["chance"] = 1 / tested.test_spec.ways
        row["scores"] = scores.tolist()
        return row if cell["shift"] == OWN else row | _against(row, measured(context, {"shift": OWN}), shift)

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        loss = context.own[0].tested.loss
        told = [r for r in rows if r.get("difference") is not None]
        worst = (min if loss.higher_is_better else max)(told, key=lambda r: r["difference"], default=None)
        said = [f"without a shift: {format_metric(loss.metric, rows[0]['mean'], rows[0]['half'])}"]
        if worst:
            change = format_metric(loss.metric, worst["difference"], worst["half_difference"])
            said.append(f"largest change for the worse, {worst['shift']}: {change}")
        broken = [r for r in rows if r.get("not_finite")]
        said += [f"no mean: {r['shift']} (diverged: {r['not_finite']} of {self.tasks} tasks)" for r in broken]
        said += [f"left out: {r['shift']} ({r['left_out']})" for r in rows if "left_out" in r]
        shifts = {r["shift"]: {k: v for k, v in r.items() if k not in ("shift", "scores")} for r in rows}
        return {
            "metric": loss.metric,
            "tasks": self.tasks,
            "shifts": shifts,
            "worst": worst["shift"] if worst else None,
            "message": "\n".join(said),
        }

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Drawing:
        return draw_shifts(rows, summary["metric"])

    def _shifts(self, experiment: Experiment) -> tuple[str, Mapping[str, Any]]:
        """Those for the run's data, and the key that they stand under."""
        data, kind = option_name("data", experiment.config), experiment.dataset.kind
        if data in self.by_data:
            return f"analysis.by_data.{data}", self.by_data[data]
        return f"analysis.{kind}", getattr(self, kind)

    def _shift(self, experiment: Experiment, name: str) -> Shift | Impossible:
        key, shifts = self._shifts(experiment)
        changes: Mapping[str, Any] = {} if name == OWN else shifts[name]
        try:
            return shifted(experiment, changes, f"{key}.{name}")
        except Impossible as error:
            return error


def _median(scores: Tensor, higher_is_better: bool) -> float:
    """Over tasks; what is not finite is as bad as can be, so that half of the tasks must diverge to take it away."""
    worst = -math.inf if higher_is_better else math.inf
    return float(np.median(np.where(scores.isfinite(), scores, worst)))


def _against(row: Row, own: Row, shift: Shift) -> Row:
    """The difference to the row without a shift."""
    higher = shift.experiment.tested.loss.higher_is_better
    found = compare(row["scores"], own["scores"], higher)
    half = found.half if shift.paired else found.unpaired_half
    told = {"difference": found.difference, "half_difference": half, "paired": shift.paired}
    return told | ({"better_on": found.wins} if shift.paired else {})
