r"""Sensitivity at test time: the same weights, adapted with other rates, more steps, another proximal strength.

Cells are factors of the run's `inner_lr` by numbers of adaptation steps (of learned rates, which begin at `inner_lr`,
factors of what was learned); for a learner with a proximal term also
factors of its lambda (`prox`) at the run's own rate, and lambda by conjugate-gradient steps. With x_0 the metric before
adaptation, x* that of the tuned cell (the run's own rate and steps), x_c those of the C other cells with at least one
step, and the sign such that larger is better:

    mean_drop = mean over the cells that did not diverge of (x* - x_c)    in the unit of the metric
    gain_lost = (1/C) sum_c min(1, (x* - x_c) / (x* - x_0))               1 where x_c diverged
    diverged  = number of cells whose x_c is not finite, or |x_c| > 100 max(|x*|, |x_0|)

`mean_drop` is the usual robustness score. It ignores cells that diverge, so read it beside their number.
`gain_lost` is the share of the gain of adaptation that is lost away from the tuned cell: 0 is no loss at all, 1 is all,
and a cell cannot lose more. It does not exist if adaptation gains nothing. The best cell is chosen on the same tasks
that it is reported on, so it flatters. Setlur et al. 2021, arXiv 2102.11503, on how unlike rankings can be away from
the tuned point.

The cells of lambda by conjugate-gradient steps measure the implicit meta-gradient on fixed test tasks:

    cg_residual     |A x - b| / |b| after so many steps, mean over tasks; A = (1 + d) I + H / lambda
    cg_negative     share of tasks on which the solver found A not to be positive definite (it stops there)
    stationarity    |grad L^S(phi) + lambda (phi - theta)| / |grad L^S(theta)|: how far the inner loop is from the
                    minimiser that the implicit gradient assumes
    implicit_error  |m_i - u_i| / |u_i| against the gradient through many inner steps, for small networks only
                    (metarun/diagnostics/meta_gradients.py); if `unroll_stationarity` is not small, it is no measure

The weights are the run's, whatever lambda they were trained with. Rajeswaran et al. 2019, arXiv 1909.04630.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metarun.analyses.analysis import Cell, Context, Row, mask_diverged, require_at_least
from metarun.analyses.figures import Map, heat_map
from metarun.diagnostics.meta_gradients import implicit_measures
from metarun.diagnostics.task_sample import draw_sample
from metarun.errors import UserError, require
from metarun.report.figures.drawing import Drawing
from metarun.storage.text import axis_label, count_nouns, display_scale, format_metric
from metarun.training.evaluation import EPISODE_SEED, mean_and_interval
from metarun.types import RATES, AlgorithmOptions, GradientLearner, ProximalLearner, optional

FAR = 100.0
"""Times the metric of the tuned cell, or of no adaptation, beyond which a cell has diverged."""

SOLVER_METRICS = ("cg_residual", "cg_negative", "stationarity")
IMPLICIT_MAPS = {
    "cg_residual": "residual of the conjugate gradient",
    "cg_negative": "share of tasks with negative curvature",
    "implicit_error": "error of the implicit meta-gradient",
}
"""Metric -> its label in the figure."""


@dataclass(frozen=True)
class Sensitivity:
    rates: tuple[float, ...]  # factors of algo.inner_lr
    steps: tuple[int, ...]  # adaptation steps
    strengths: tuple[float, ...]  # factors of algo.prox
    tasks: int  # test episodes
    cg_steps: tuple[int, ...]
    cg_tasks: int  # test episodes
    unroll_steps: int  # inner steps of the gradient that the implicit one is compared with

    def __post_init__(self) -> None:
        for name in ("rates", "strengths"):
            factors = getattr(self, name)
            require(all(f > 0 for f in factors), name, list(factors), "must be above 0 (factors of the run's value)")
        for name, least in (("steps", 0), ("cg_steps", 1)):
            numbers = getattr(self, name)
            require(all(n >= least for n in numbers), name, list(numbers), f"must be whole numbers of at least {least}")
        require_at_least(self, tasks=1, cg_tasks=1, unroll_steps=1)

    def cells(self, context: Context) -> Sequence[Cell]:
        """A cell a setting; one evaluation yields all of its steps. The run's own settings are always among them."""
        learner = context.run.experiment.algorithm
        if not isinstance(learner, GradientLearner):
            raise UserError("analysis=sensitivity: this run's algorithm has no inner loop with a rate to change")
        cells: list[Cell] = [{"inner_lr": learner.inner_lr * f} for f in sorted({1.0, *self.rates})]
        if not isinstance(learner, ProximalLearner):
            return cells
        cells = [cell | {"prox": learner.prox} for cell in cells]
        cells += [{"inner_lr": learner.inner_lr, "prox": learner.prox * f} for f in self.strengths if f != 1]
        algo = context.config.algo
        if "cg_steps" in algo and self.cg_steps:
            factors, steps = sorted({1.0, *self.strengths}), sorted({*self.cg_steps, algo["cg_steps"]})
            cells += [{"prox": algo["prox"] * f, "cg_steps": k} for f in factors for k in steps]
        return cells

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        experiment = context.assemble({f"algo.{k}": v for k, v in cell.items()})
        own: Any = context.run.experiment.algorithm
        learner: Any = experiment.tested
        params = context.run.params
        if "inner_lr" in cell:
            factor = cell["inner_lr"] / own.inner_lr
            params = {name: factor * p if name.startswith(RATES) else p for name, p in params.items()}
        if "cg_steps" in cell:
            dataset, spec, placement = experiment.dataset, experiment.test_spec, experiment.placement
            tasks = draw_sample(dataset, "test", EPISODE_SEED, 0, self.cg_tasks, spec, placement)
            metrics = tasks.each(learner.meta_grad, params)[1]
            row = {name: float(metrics[name].double().mean()) for name in SOLVER_METRICS if name in metrics}
            return row | implicit_measures(learner, params, tasks, self.unroll_steps)
        found = experiment.evaluator("test", self.tasks, self._reported_steps(learner))(learner, params)
        scores = mask_diverged(found.losses, found.scores)
        curve = {k: mean_and_interval(s) for k, s in zip(found.steps, scores, strict=True)}
        return {f"after_{k}": m for k, (m, _) in curve.items()} | {f"half_{k}": h for k, (_, h) in curve.items()}

    def _reported_steps(self, learner: Any) -> tuple[int, ...]:
        """The steps of the setting, and those before adaptation and of the run's own result."""
        return tuple(sorted({0, learner.test_inner_steps, *self.steps}))

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        learner: Any = context.run.experiment.algorithm
        steps, better = self._reported_steps(learner), learner.loss.higher_is_better
        own = {"inner_lr": learner.inner_lr, "prox": optional(learner, AlgorithmOptions, "prox")}
        at = (*own.values(), learner.test_inner_steps)
        adapted = [r for r in rows if "cg_steps" not in r]
        values = {(r["inner_lr"], r.get("prox"), k): r[f"after_{k}"] for r in adapted for k in steps}
        others = [v for cell, v in values.items() if cell[-1] > 0 and cell != at]
        score = robustness(values[at], values[(*own.values(), 0)], others, better)
        finite = {cell: v for cell, v in values.items() if v is not None}
        best = (max if better else min)(finite, key=lambda cell: finite[cell], default=None)
        tuned = {**own, "steps": at[-1], "value": values[at], "cg_steps": context.config.algo.get("cg_steps")}
        summary = {"metric": learner.loss.metric, "tuned": tuned, **score}
        if best:
            summary["best"] = dict(zip(("inner_lr", "prox", "steps"), best, strict=True)) | {"value": finite[best]}
        return summary | {"steps": steps, "message": _describe(summary)}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        """A map of the test metric, and one of each metric of the implicit gradient that the rows have; the run's own
        settings are framed."""
        adapted, steps, tuned = [r for r in rows if "cg_steps" not in r], summary["steps"], summary["tuned"]
        metric, own = (
            summary["metric"],
            next(r for r in adapted if all(r.get(k) == tuned[k] for k in ("inner_lr", "prox"))),
        )
        maps: list[Map] = []
        marked = []
        for label, axis, other in (("inner rate", "inner_lr", "prox"), ("lambda", "prox", "inner_lr")):
            line = [r for r in adapted if r.get(other) == own.get(other) and axis in r]
            line.sort(key=lambda r: r[axis])
            if len(line) > 1 or axis == "inner_lr":
                values = [[r[f"after_{k}"] for k in steps] for r in line]
                grid = [[None if v is None else display_scale(metric) * v for v in row] for row in values]
                maps.append((label, [r[axis] for r in line], grid))
                marked.append((line.index(own), steps.index(tuned["steps"])))
        what = f"test {axis_label(metric)}".replace(", %", " (%)")
        drawings = [heat_map("sensitivity", what, maps, "adaptation steps", steps, marked)]
        implicit = {(r["prox"], r["cg_steps"]): r for r in rows if "cg_steps" in r}
        strengths, solver_steps = (sorted({cell[i] for cell in implicit}) for i in (0, 1))
        for name, what in IMPLICIT_MAPS.items():
            if any(r.get(name) is not None for r in implicit.values()):
                grid = [[implicit[p, k].get(name) for k in solver_steps] for p in strengths]
                frame = [(strengths.index(tuned["prox"]), solver_steps.index(tuned["cg_steps"]))]
                lambdas = [("lambda", strengths, grid)]
                drawings.append(heat_map(name, what, lambdas, "conjugate-gradient steps", solver_steps, frame))
        return drawings


def robustness(
    tuned: float | None, before: float | None, others: Sequence[float | None], higher_is_better: bool
) -> dict[str, Any]:
    """`mean_drop`, `gain_lost`, the number of cells and of those that diverged. A metric that is not finite is None."""
    largest = FAR * max((abs(v) for v in (tuned, before) if v is not None), default=math.inf)
    sound = [v for v in others if v is not None and abs(v) <= largest]
    counts = {"cells": len(others), "diverged": len(others) - len(sound)}
    if tuned is None:
        return {"mean_drop": None, "gain_lost": None, **counts}
    sign = 1.0 if higher_is_better else -1.0
    drops = [sign * (tuned - v) for v in sound]
    gain = 0.0 if before is None else sign * (tuned - before)
    lost = [min(1.0, d / gain) for d in drops] + [1.0] * counts["diverged"] if gain > 0 else []
    mean_drop, gain_lost = (sum(values) / len(values) if values else None for values in (drops, lost))
    return {"mean_drop": mean_drop, "gain_lost": gain_lost, **counts}


def _describe(summary: dict[str, Any]) -> str:
    metric, tuned = summary["metric"], summary["tuned"]
    lines = [f"the run's own setting ({_name_setting(tuned)}): {format_metric(metric, tuned['value'])}"]
    if summary["cells"]:
        change = f"the metric gets worse by {format_metric(metric, summary['mean_drop'])} on average"
        if summary["gain_lost"] is not None:
            change = f"{summary['gain_lost']:.0%} of the gain of adaptation is lost on average"
        lost = f"; {summary['diverged']} of them diverged" if summary["diverged"] else ""
        lines.append(f"{count_nouns(summary['cells'], 'other setting')}: {change}{lost}")
    if "best" in summary:
        best = summary["best"]
        lines.append(f"best setting on these tasks ({_name_setting(best)}): {format_metric(metric, best['value'])}")
    return "\n".join(lines)


def _name_setting(at: dict[str, Any]) -> str:
    prox = "" if at["prox"] is None else f", lambda {at['prox']:g}"
    return f"rate {at['inner_lr']:g}, {count_nouns(at['steps'], 'step')}{prox}"
