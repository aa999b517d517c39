r"""How the metric on new tasks, and its gap to the training tasks, depend on the number of training tasks or classes.

`amounts` are sizes of the pool of training tasks (train.pool), each a beginning of the next; metrics are those of the
last weights after `test_inner_steps`, on the pool's own tasks and on new ones. With `of: classes` they are numbers of
training classes of an image set (data.train_classes), and the own tasks are `tasks` episodes of these classes.

    gap(n) = c n^(-1/2) by least squares,    c = sum gap n^(-1/2) / sum 1/n

gap is how much better the own tasks are: test - train of an error, train - test of an accuracy. The line is drawn for
reference: n^(-1/2) is the rate of upper bounds that hold uniformly over a class of learners (Maurer 2005, Algorithmic
stability and meta-learning, JMLR 6), without a value for c. `exponent` is the slope of log gap on log n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metarun.analyses.analysis import Cell, Context, Row, known_values, require_at_least, require_different
from metarun.analyses.figures import finish_sizes, plot_known
from metarun.analyses.stability import evaluate_last_weights, same_episode_size
from metarun.errors import SettingError, UserError, require
from metarun.report.figures.drawing import COLOURS, GREY, Drawing, panels
from metarun.report.statistics.intervals import t_interval
from metarun.report.statistics.rate import fit_line
from metarun.storage.text import axis_label, difference_label, display_scale, format_metric
from metarun.training.evaluation import mean_and_interval

KEYS = {"tasks": "train.pool", "classes": "data.train_classes"}


@dataclass(frozen=True)
class DataAmount:
    of: str  # tasks, classes
    amounts: tuple[int, ...]
    seeds: int
    tasks: int  # test episodes

    def __post_init__(self) -> None:
        require(self.of in KEYS, "of", self.of, "choices: " + ", ".join(KEYS))
        require_different(self, "amounts")
        require_at_least(self, seeds=1, tasks=2)

    def cells(self, context: Context) -> Sequence[Cell]:
        kind = context.assemble().dataset.kind
        if self.of == "classes" and kind != "classification":
            raise SettingError("analysis.of", self.of, f"these data are {kind}, which has no classes; choices: tasks")
        for amount in self.amounts:
            experiment = context.assemble(self._changes(context, amount, 0))
            if self.of == "tasks" and not same_episode_size(experiment):
                train, test = experiment.train_spec, experiment.test_spec
                raise UserError(f"analysis=data_amount: training tasks are {train}, test tasks {test}: no gap to take")
        return [{"amount": n, "seed": s} for n in self.amounts for s in range(self.seeds)]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        changes = self._changes(context, cell["amount"], cell["seed"])
        experiment = context.assemble(changes)
        cells = [(n, s) for n in self.amounts for s in range(self.seeds)]
        runs = {f"{self.of}-{n}-seed-{s}": self._changes(context, n, s) for n, s in cells}
        run = context.train_one_of(runs, f"{self.of}-{cell['amount']}-seed-{cell['seed']}")
        outcome = evaluate_last_weights(experiment, run, self.tasks)
        if outcome is None:
            return {"diverged": True}
        own = outcome.own_scores
        if self.of == "classes" or own is None:
            evaluator = experiment.evaluator("train", self.tasks, (experiment.tested.test_inner_steps,))
            own = evaluator(experiment.tested, experiment.fit_head(outcome.params)).scores[-1].double()
        new, half = mean_and_interval(outcome.new_scores)
        train = float(own.mean())
        gap = train - new if experiment.algorithm.loss.higher_is_better else new - train
        return {"diverged": False, "train": train, "test": new, "half_test": half, "gap": gap}

    def _changes(self, context: Context, amount: int, seed: int) -> dict[str, Any]:
        """Each seed has a pool of its own; the first is the run's."""
        changes = {KEYS[self.of]: amount, "seed": context.config.seed + seed}
        return changes | ({"train.pool_seed": context.config.train.pool_seed + seed} if self.of == "tasks" else {})

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        metric = context.assemble().algorithm.loss.metric
        amounts = [_summarise_amount(n, [r for r in rows if r["amount"] == n]) for n in self.amounts]
        gaps = [(a["amount"], a["gap"]) for a in amounts if a["gap"] is not None]
        change = f"gap from {gaps[0][1]:.3g} to {gaps[-1][1]:.3g}" if gaps else "no gap was measured"
        message = f"{change} as training {self.of} go from {self.amounts[0]} to {self.amounts[-1]}"
        return {"metric": metric, "of": self.of, "amounts": amounts, **fit_gap(gaps), "message": message}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        """Small dots are seeds, bars Student's 95 % intervals over them."""
        metric, amounts = summary["metric"], sorted(summary["amounts"], key=lambda a: a["amount"])
        sizes, scale = [a["amount"] for a in amounts], display_scale(metric)
        drawn, (left, right) = panels(2, columns=2, height=3.0)
        for axes, key, colour, marker, label in (
            (left, "train", COLOURS[0], "o", f"the training {summary['of']}"),
            (left, "test", COLOURS[1], "s", "new tasks"),
            (right, "gap", COLOURS[2], "D", "gap"),
        ):
            seeds = [None if r.get(key) is None else scale * r[key] for r in rows]
            dots: dict[str, Any] = {"marker": ".", "markersize": 4, "alpha": 0.5, "zorder": 1}
            plot_known(axes, [r["amount"] for r in rows], seeds, color=colour, **dots)
            means = [(a["amount"], a[key], a[f"{key}_half"] or 0) for a in amounts if a[key] is not None]
            if means:
                n, mean, half = np.array(means, dtype=float).T * [[1], [scale], [scale]]
                half = np.where(np.isfinite(half), half, 0)
                axes.errorbar(n, mean, yerr=half, fmt=f"{marker}-", color=colour, capsize=3, label=label)
        right.axhline(0, color=GREY, linewidth=0.8)
        if summary["c"] is not None:
            n = np.geomspace(sizes[0], sizes[-1], 50)
            line = scale * summary["c"] * n**-0.5
            label = "c / √n, fitted, for reference"
            right.plot(n, line, color="black", linestyle=(0, (5, 1.5)), linewidth=1, label=label)
        for axes, keys, title, y in (
            (left, ("train", "test"), "After adaptation", axis_label(metric)),
            (right, ("gap",), "How much better on the tasks of training", difference_label(metric, "gap")),
        ):
            axes.legend()
            shown = np.array([scale * a[k] for a in amounts for k in keys if a[k] is not None], dtype=float)
            finish_sizes(axes, title, f"training {summary['of']} n", y, sizes, shown)
        values = " ".join(f"{a['amount']}: {format_metric(metric, a['test'])}." for a in amounts)
        return [Drawing("data_amount", f"Test {metric} by training {summary['of']}. {values}", drawn)]


def fit_gap(gaps: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    """c of gap = c n^(-1/2), and the exponent of a free power law if all gaps are above 0, from pairs (n, gap)."""
    if not gaps:
        return {"c": None, "exponent": None, "exponent_half": None}
    n, y = np.array(gaps, dtype=float).T
    c = float((y * n**-0.5).sum() / (1 / n).sum())
    line = fit_line(np.log(n), np.log(y)) if (y > 0).all() else None
    return {"c": c, "exponent": line.slope if line else None, "exponent_half": line.half if line else None}


def _summarise_amount(amount: int, rows: Sequence[Row]) -> dict[str, Any]:
    """Means over the seeds and Student's intervals; diverged runs have no numbers and are counted."""
    summary: dict[str, Any] = {"amount": amount, "diverged": sum(r["diverged"] for r in rows)}
    for key in ("train", "test", "gap"):
        mean, half = t_interval(known_values(rows, key))
        summary |= {key: mean if np.isfinite(mean) else None, f"{key}_half": half}
    return summary
