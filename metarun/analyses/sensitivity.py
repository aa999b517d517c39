r"""Sensitivity at test time: the same weights, adapted with other rates, more steps, another proximal strength.

Cells are factors of the run's `inner_lr` by numbers of adaptation steps; for a learner with a proximal term also
factors of its lambda (`prox`) at the run's own rate. The robustness of the run is the mean drop of its figure over the
cells, relative to the cell it was tuned for (reference: Setlur et al. 2021, arXiv 2102.11503, on how unlike rankings
can be away from the tuned point).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metarun.analyses.context import Context
from metarun.analyses.figures import heat_map
from metarun.analyses.frame import Cell, Row
from metarun.errors import UserError, require
from metarun.evaluation import mean_and_interval
from metarun.report.drawing import Drawing
from metarun.types import GradientLearner, ProximalLearner


@dataclass(frozen=True)
class Sensitivity:
    rates: tuple[float, ...]  # factors of algo.inner_lr
    steps: tuple[int, ...]  # adaptation steps
    strengths: tuple[float, ...]  # factors of algo.prox
    tasks: int  # test episodes

    def __post_init__(self) -> None:
        require(all(f > 0 for f in (*self.rates, *self.strengths)), "rates", list(self.rates), "must be above 0")
        steps_hold = bool(self.steps) and min(self.steps) >= 0
        require(steps_hold, "steps", list(self.steps), "must be whole numbers of at least 0")

    def cells(self, context: Context) -> Sequence[Cell]:
        """A cell a setting; one evaluation yields all of its steps."""
        learner = context.experiment().tested
        if not isinstance(learner, GradientLearner):
            raise UserError("analysis=sensitivity: this run's algorithm has no inner loop whose rate could be changed")
        rates = [{"inner_lr": learner.inner_lr * f, "prox": getattr(learner, "prox", None)} for f in self.rates]
        if isinstance(learner, ProximalLearner):
            rates += [{"inner_lr": learner.inner_lr, "prox": learner.prox * f} for f in self.strengths if f != 1]
        return rates

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        changes = {f"algo.{k}": v for k, v in cell.items() if v is not None}
        most = max(self.steps)
        evaluation = context.evaluate(changes | {"test.steps": most, "test.tasks": self.tasks})
        curve = {k: mean_and_interval(s) for k, s in zip(evaluation.steps, evaluation.scores, strict=True)}
        means = {f"after_{k}": curve[k][0] for k in self.steps}
        return means | {f"half_{k}": curve[k][1] for k in self.steps}

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        learner: Any = context.experiment().tested
        own = next(r for r in rows if r["inner_lr"] == learner.inner_lr and r["prox"] == getattr(learner, "prox", None))
        at = min(self.steps, key=lambda k: abs(k - learner.test_inner_steps))
        tuned = own[f"after_{at}"]
        better = learner.loss.higher_is_better
        drops = [_worse(r[f"after_{k}"], tuned, better) for r in rows for k in self.steps if k > 0]
        broken = sum(d is None for d in drops)
        finite = [d for d in drops if d is not None]
        drop = float(np.mean(finite)) if finite else None
        return {
            "metric": learner.loss.metric,
            "tuned": {"inner_lr": learner.inner_lr, "steps": at, "value": tuned},
            "mean_drop": drop,
            "not_finite": broken,
            "message": f"mean change for the worse over {len(drops)} cells: {_said(drop)}; {broken} not finite",
        }

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Drawing:
        metric = summary["metric"]
        by_rate = [r for r in rows if r["prox"] in (None, rows[0]["prox"])]
        values = [[r[f"after_{k}"] for k in self.steps] for r in by_rate]
        maps = [("inner rate", [r["inner_lr"] for r in by_rate], values)]
        others = [r for r in rows if r not in by_rate]
        if others:
            others = sorted([*others, _own(by_rate, summary)], key=lambda r: r["prox"])
            maps.append(
                ("lambda", [r["prox"] for r in others], [[r[f"after_{k}"] for k in self.steps] for r in others])
            )
        return heat_map("sensitivity", f"test {metric}", maps, "adaptation steps", self.steps)


def _own(rows: Sequence[Row], summary: dict[str, Any]) -> Row:
    return next(r for r in rows if r["inner_lr"] == summary["tuned"]["inner_lr"])


def _worse(value: float | None, tuned: float, higher_is_better: bool) -> float | None:
    """How much worse than the tuned cell; None where it is not a number."""
    if value is None or tuned is None:
        return None
    return tuned - value if higher_is_better else value - tuned


def _said(value: float | None) -> str:
    return "none is finite" if value is None else f"{value:.4g}"
