r"""Sensitivity at test time: the same weights, adapted with other rates, more steps, another proximal strength.

Cells are factors of the run's `inner_lr` by numbers of adaptation steps; for a learner with a proximal term also
factors of its lambda (`prox`) at the run's own rate, and lambda by conjugate-gradient steps (`implicit_cells.py`).
With x_0 the figure before adaptation, x* that of the tuned cell (the run's own rate and steps), x_c those of the C
other cells with at least one step, and the sign such that larger is better:

    mean_drop = mean over the finite cells of (x* - x_c)                  in the unit of the figure
    gain_lost = (1/C) sum_c min(1, (x* - x_c) / (x* - x_0))               1 where x_c is not finite

`mean_drop` is the usual robustness score, but says nothing of cells that diverge, and one error of 1e6 makes all of it.
`gain_lost` is the share of what adaptation gains that is lost away from the tuned cell: 0 is no loss at all, 1 is all,
and a cell cannot lose more. It does not exist where adaptation gains nothing. The best cell is chosen on the same tasks
that it is told on, so it flatters. Setlur et al. 2021, arXiv 2102.11503, on how unlike rankings can be away from the
tuned point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metarun.analyses.context import Context, sound
from metarun.analyses.figures import heat_map
from metarun.analyses.frame import Cell, Row
from metarun.analyses.implicit_cells import draw_implicit, implicit_cells, measure_implicit
from metarun.errors import UserError, require
from metarun.report.figures.drawing import Drawing
from metarun.storage.text import axis_label, display_scale, format_metric
from metarun.training.evaluation import mean_and_interval
from metarun.types import GradientLearner, ProximalLearner


@dataclass(frozen=True)
class Sensitivity:
    rates: tuple[float, ...]  # factors of algo.inner_lr
    steps: tuple[int, ...]  # adaptation steps
    strengths: tuple[float, ...]  # factors of algo.prox
    tasks: int  # test episodes
    cg_steps: tuple[int, ...]
    cg_tasks: int  # test episodes
    unroll_steps: int  # inner steps of the gradient that the implicit one is held against

    def __post_init__(self) -> None:
        for name in ("rates", "strengths"):
            factors = getattr(self, name)
            require(all(f > 0 for f in factors), name, list(factors), "must be above 0 (factors of the run's value)")
        for name, least in (("steps", 0), ("cg_steps", 1)):
            numbers = getattr(self, name)
            require(all(n >= least for n in numbers), name, list(numbers), f"must be whole numbers of at least {least}")
        for name in ("tasks", "cg_tasks", "unroll_steps"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")

    def cells(self, context: Context) -> Sequence[Cell]:
        """A cell a setting; one evaluation yields all of its steps. The run's own settings are always among them."""
        learner = context.own[0].tested
        if not isinstance(learner, GradientLearner):
            raise UserError("analysis=sensitivity: this run's algorithm has no inner loop whose rate could be changed")
        own = getattr(learner, "prox", None)
        rates = [{"inner_lr": learner.inner_lr * f, "prox": own} for f in _with_one(self.rates)]
        if not isinstance(learner, ProximalLearner):
            return rates
        others = [{"inner_lr": learner.inner_lr, "prox": learner.prox * f} for f in self.strengths if f != 1]
        return rates + others + implicit_cells(context, _with_one(self.strengths), self.cg_steps)

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        if "cg_steps" in cell:
            return measure_implicit(context, cell, self.cg_tasks, self.unroll_steps)
        experiment = context.experiment({f"algo.{k}": v for k, v in cell.items() if v is not None})
        evaluator = experiment.evaluator("test", self.tasks, self._shown(experiment.tested))
        found = evaluator(experiment.tested, context.own[1])
        curve = {k: mean_and_interval(s) for k, s in zip(found.steps, sound(found.losses, found.scores), strict=True)}
        return {f"after_{k}": m for k, (m, _) in curve.items()} | {f"half_{k}": h for k, (_, h) in curve.items()}

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        learner: Any = context.own[0].tested
        tested = [r for r in rows if "cg_steps" not in r]
        own = {"inner_lr": learner.inner_lr, "prox": getattr(learner, "prox", None)}
        at = learner.test_inner_steps
        figures = {(r["inner_lr"], r["prox"], k): r[f"after_{k}"] for r in tested for k in self._shown(learner)}
        tuned = figures[(*own.values(), at)]
        others = [v for (*cell, k), v in figures.items() if k and (*cell, k) != (*own.values(), at)]
        better = learner.loss.higher_is_better
        score = robustness(tuned, figures[(*own.values(), 0)], others, better)
        finite = {cell: v for cell, v in figures.items() if v is not None}
        best = (max if better else min)(finite, key=lambda cell: finite[cell], default=None)
        summary = {"metric": learner.loss.metric, "tuned": {**own, "steps": at, "value": tuned}, **score}
        summary["tuned"]["cg_steps"] = context.config.algo.get("cg_steps")
        if best:
            summary["best"] = dict(zip(("inner_lr", "prox", "steps"), best, strict=True)) | {"value": finite[best]}
        return summary | {"steps": self._shown(learner), "message": _said(summary)}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        tested, steps, tuned = [r for r in rows if "cg_steps" not in r], summary["steps"], summary["tuned"]
        own = next(r for r in tested if all(r[k] == tuned[k] for k in ("inner_lr", "prox")))
        maps, marked = [], []
        for label, axis, other in (("inner rate", "inner_lr", "prox"), ("lambda", "prox", "inner_lr")):
            found = sorted((r for r in tested if r[other] == own[other] and r[axis] is not None), key=lambda r: r[axis])
            if len(found) > 1 or axis == "inner_lr":
                maps.append((label, [r[axis] for r in found], [_shown_in(summary["metric"], r, steps) for r in found]))
                marked.append((found.index(own), steps.index(tuned["steps"])))
        what = f"test {axis_label(summary['metric'])}".replace(", %", " (%)")
        return [
            heat_map("sensitivity", what, maps, "adaptation steps", steps, marked),
            *draw_implicit([r for r in rows if "cg_steps" in r], tuned),
        ]

    def _shown(self, learner: Any) -> tuple[int, ...]:
        """The steps that are asked for, those before adaptation and of the run's own figure."""
        return tuple(sorted({0, learner.test_inner_steps, *self.steps}))


def robustness(
    tuned: float | None, before: float | None, others: Sequence[float | None], higher_is_better: bool
) -> dict[str, Any]:
    """`mean_drop`, `gain_lost`, and how many cells there are and are not finite; None for what is not finite."""
    finite = [v for v in others if v is not None]
    scores: dict[str, Any] = {"cells": len(others), "not_finite": len(others) - len(finite)}
    if tuned is None:
        return {"mean_drop": None, "gain_lost": None, **scores}
    sign = 1.0 if higher_is_better else -1.0
    drops = [sign * (tuned - v) for v in finite]
    gain = 0.0 if before is None else sign * (tuned - before)
    lost = [min(1.0, d / gain) for d in drops] + [1.0] * scores["not_finite"] if gain > 0 else []
    return {"mean_drop": _mean(drops), "gain_lost": _mean(lost), **scores}


def _shown_in(metric: str, row: Row, steps: Sequence[int]) -> list[float | None]:
    """The row's figures in the unit that they are printed in."""
    found = [row[f"after_{k}"] for k in steps]
    return [None if v is None else display_scale(metric) * v for v in found]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _with_one(factors: Sequence[float]) -> list[float]:
    return sorted({1.0, *factors})


def _said(summary: dict[str, Any]) -> str:
    metric, tuned = summary["metric"], summary["tuned"]
    lost, drop = summary["gain_lost"], f"{format_metric(metric, summary['mean_drop'])} is the mean change for the worse"
    away = drop if lost is None else f"{lost:.0%} of what adaptation gains is lost on average"
    lines = [
        f"rate {tuned['inner_lr']:g} and {tuned['steps']} steps, as tuned: {format_metric(metric, tuned['value'])}",
        f"in {summary['cells']} other cells {away}; not finite: {summary['not_finite']}",
    ]
    if "best" in summary:
        best = summary["best"]
        where = f"rate {best['inner_lr']:g}, {best['steps']} steps"
        where += "" if best["prox"] is None else f", lambda {best['prox']:g}"
        lines.append(f"best cell on these tasks: {where}: {format_metric(metric, best['value'])}")
    return "\n".join(lines)
