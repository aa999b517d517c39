r"""How the figure on new tasks, and its gap to the tasks of training, depend on how many tasks or classes there were.

`amounts` are sizes of the pool of training tasks (train.pool), each a beginning of the next; figures are those of the
last weights after `test_inner_steps`, on the pool's own tasks and on new ones. With `of: classes` they are numbers of
training classes of an image set (data.train_classes), and the own tasks are `tasks` episodes of these classes.

    gap(n) = c n^(-1/2) by least squares,    c = sum gap n^(-1/2) / sum 1/n

gap is how much better the own tasks are: test - train of an error, train - test of an accuracy. The line is drawn for
reference: n^(-1/2) is the rate of upper bounds that hold uniformly over a class of learners (Maurer 2005, Algorithmic
stability and meta-learning, JMLR 6), and says nothing of c. `exponent` is the slope of log gap on log n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metarun.analyses.context import Context, TrainedRun
from metarun.analyses.data_amount_figure import draw_amounts
from metarun.analyses.frame import Cell, Row
from metarun.analyses.stability import Learned, comparable, learned
from metarun.errors import SettingError, UserError, require
from metarun.report.figures.drawing import Drawing
from metarun.statistics.intervals import t_interval
from metarun.statistics.rate import fit_line
from metarun.training.evaluation import mean_and_interval
from metarun.training.experiment import Experiment

KEYS = {"tasks": "train.pool", "classes": "data.train_classes"}


@dataclass(frozen=True)
class DataAmount:
    of: str  # tasks, classes
    amounts: tuple[int, ...]
    seeds: int
    tasks: int  # test episodes

    def __post_init__(self) -> None:
        require(self.of in KEYS, "of", self.of, "choices: " + ", ".join(KEYS))
        sound = bool(self.amounts) and min(self.amounts) >= 1 and len(set(self.amounts)) == len(self.amounts)
        require(sound, "amounts", list(self.amounts), "must be different whole numbers of at least 1")
        require(self.seeds >= 1, "seeds", self.seeds, "must be at least 1")
        require(self.tasks >= 2, "tasks", self.tasks, "must be at least 2")

    def cells(self, context: Context) -> Sequence[Cell]:
        kind = context.experiment().dataset.kind
        if self.of == "classes" and kind != "classification":
            raise SettingError("analysis.of", self.of, f"these data are {kind}, which has no classes; choices: tasks")
        for amount in self.amounts:
            experiment = context.experiment(self._changes(context, amount, 0))
            if self.of == "tasks" and not comparable(experiment):
                train, test = experiment.train_spec, experiment.test_spec
                raise UserError(f"analysis=data_amount: training tasks are {train}, test tasks {test}: no gap to take")
        return [{"amount": n, "seed": s} for n in self.amounts for s in range(self.seeds)]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        changes = self._changes(context, cell["amount"], cell["seed"])
        experiment = context.experiment(changes)
        run = context.train(f"{self.of}-{cell['amount']}-seed-{cell['seed']}", changes)
        state = learned(experiment, run, self.tasks)
        return {"diverged": run.diverged} | (self._figures(experiment, run, state) if state else {})

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        loss = context.experiment().algorithm.loss
        told = [_of_amount(n, [r for r in rows if r["amount"] == n]) for n in self.amounts]
        known = [(t["amount"], t["gap"]) for t in told if t["gap"] is not None]
        fitted = fit_gap(known)
        said = "no gap was measured" if not known else f"gap from {known[0][1]:.3g} to {known[-1][1]:.3g}"
        message = f"{said} as training {self.of} go from {self.amounts[0]} to {self.amounts[-1]}"
        return {"metric": loss.metric, "of": self.of, "amounts": told, **fitted, "message": message}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Drawing:
        return draw_amounts(rows, summary)

    def _changes(self, context: Context, amount: int, seed: int) -> dict[str, Any]:
        """Each seed has a pool of its own; the first is the run's."""
        changes = {KEYS[self.of]: amount, "seed": context.config.seed + seed}
        return changes | ({"train.pool_seed": context.config.train.pool_seed + seed} if self.of == "tasks" else {})

    def _figures(self, experiment: Experiment, run: TrainedRun, state: Learned) -> dict[str, float]:
        own = state.own_scores
        if self.of == "classes" or own is None:
            steps = (experiment.tested.test_inner_steps,)
            own = experiment.evaluator("train", self.tasks, steps)(experiment.tested, state.params).scores[-1].double()
        new, half = mean_and_interval(state.new_scores)
        train = float(own.mean())
        better = train - new if experiment.algorithm.loss.higher_is_better else new - train
        return {"train": train, "test": new, "half_test": half, "gap": better}


def fit_gap(known: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    """c of gap = c n^(-1/2), and the exponent of a free power law where all gaps are above 0."""
    if not known:
        return {"c": None, "exponent": None, "exponent_half": None}
    n, y = (np.array(v, dtype=float) for v in zip(*known, strict=True))
    c = float((y * n**-0.5).sum() / (1 / n).sum())
    line = fit_line(np.log(n), np.log(y)) if (y > 0).all() else None
    return {"c": c, "exponent": line.slope if line else None, "exponent_half": line.half if line else None}


def _of_amount(amount: int, rows: Sequence[Row]) -> dict[str, Any]:
    told: dict[str, Any] = {"amount": amount, "diverged": sum(r["diverged"] for r in rows)}
    for key in ("train", "test", "gap"):
        mean, half = t_interval([r[key] for r in rows if r.get(key) is not None])
        told |= {key: mean if np.isfinite(mean) else None, f"{key}_half": half}
    return told
