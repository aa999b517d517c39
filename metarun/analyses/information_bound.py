r"""An information bound of the generalisation gap: how much do losses depend on which tasks were trained on?

The analysis trains R runs like the run's settings, each on a pool of n tasks: of each task and a substitute the one
that fair bits choose (`train.pool_choice`), with another seed for weights and order. A query has the loss 1 if it is
taken for another class, or if the squared error of its prediction is above `threshold`; of a run that diverged all
have 1. metarun/diagnostics/membership.py has the bound, its two estimates and the sources. The gap is the difference of
the share of failed queries between tasks that a run was not trained on and those that it was, both adapted to at their
own support sets, from the weights after the last step. Its interval is over the draws, Student's, 95 %.

The bound holds for this n and this training, on average over draws of the pool; the pairs are the same for all draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarun.analyses.analysis import Cell, Context, Row, TrainedRun, require_at_least
from metarun.analyses.stability import same_episode_size
from metarun.data.pool import TaskPool
from metarun.diagnostics.membership import bound_gap, measure_gap
from metarun.errors import UserError, require
from metarun.report.figures.drawing import COLOURS, GREY, Drawing, finish, panels
from metarun.report.statistics.intervals import t_interval
from metarun.storage.text import count_nouns
from metarun.training import checkpoint
from metarun.training.evaluation import LOSS, PREDICTION, calibrate, score_tasks
from metarun.training.experiment import Experiment


@dataclass(frozen=True)
class InformationBound:
    pool: int  # n, training tasks of each run
    draws: int  # R, runs
    threshold: float | None  # of a regression: the squared error from which a prediction has failed

    def __post_init__(self) -> None:
        require_at_least(self, pool=1, draws=4)
        sound = self.threshold is None or self.threshold > 0
        require(sound, "threshold", self.threshold, "must be above 0 (a squared error), or null for classification")

    def cells(self, context: Context) -> Sequence[Cell]:
        experiment = context.assemble(self.changes(0))
        regression = experiment.dataset.kind == "regression"
        if experiment.dataset.kind == "control" or not same_episode_size(experiment):
            reason = "needs labelled examples, and as many ways and shots in training as at test"
            raise UserError(f"analysis=information_bound: {reason}")
        needed = "must be a squared error from which a prediction has failed, as 0.5" if regression else "must be null"
        sound = (self.threshold is not None) == regression
        require(sound, "analysis.threshold", self.threshold, f"{needed}: this is a {experiment.dataset.kind}")
        return [{"draw": draw} for draw in range(self.draws)]

    def changes(self, draw: int) -> dict[str, Any]:
        return {"train.pool": self.pool, "train.pool_replaced": None, "train.pool_choice": draw, "seed": draw}

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        changes = self.changes(cell["draw"])
        experiment = context.assemble(changes)
        runs = {f"draw-{draw}": self.changes(draw) for draw in range(self.draws)}
        run = context.train_one_of(runs, f"draw-{cell['draw']}")
        failed = self.failures(experiment, run)  # [2, n, M]
        pool: Any = experiment.dataset
        chosen = pool.substituted()
        own, other = (float(v) for v in measure_gap(failed[None], chosen[None]))
        row = {"diverged": run.diverged, "own": own, "other": other, "gap": other - own}
        return row | {"chosen": chosen.int().tolist(), "failed": failed.int().tolist()}

    def failures(self, experiment: Experiment, run: TrainedRun) -> Tensor:
        """Whether each query of each task and its substitute fails, [2, n, M]."""
        pool, spec, placement = experiment.dataset, experiment.train_spec, experiment.placement
        assert isinstance(pool, TaskPool)
        tasks = pool.candidates(spec, 2 * pool.size)
        y = tasks.query.y
        if run.diverged:
            return torch.ones(2, pool.size, y.shape[1], dtype=torch.bool)
        params = experiment.initial_params()
        checkpoint.restore_params(run.folder.last, params)
        learner = calibrate(experiment.algorithm, params, pool, placement)
        chunk = placement.evaluation_chunk(spec, pool.input_shape())
        steps = (learner.test_inner_steps,)
        found = score_tasks(learner, params, placement.move_task(tasks), steps, chunk, with_predictions=True)
        predicted = found[PREDICTION][:, -1]
        if self.threshold is None:
            failed = predicted.argmax(-1) != y
        else:  # of a Gaussian, its mean; an error that is not finite has failed
            failed = ~((predicted[..., : y.shape[-1]] - y).square().mean(-1) <= self.threshold)
        failed |= ~found[LOSS][:, -1:].isfinite()
        return failed.unflatten(0, (2, pool.size))

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        bound = bound_gap(torch.tensor([r["failed"] for r in rows]), torch.tensor([r["chosen"] for r in rows]))
        gap = t_interval([row["gap"] for row in rows])
        summary = {"pool": self.pool, "draws": len(rows), "gap": gap.mean, "half_gap": gap.half}
        summary |= {"bound": bound.corrected, "plugin_bound": bound.plugin}
        summary |= {"information": bound.information, "bias": bound.bias}
        diverged = sum(row["diverged"] for row in rows)
        difference = f"{100 * gap.mean:.1f} +- {100 * gap.half:.1f} points more of the queries fail"
        bounds = f"{100 * bound.corrected:.1f} (mean of roots, with its bias, {100 * bound.plugin:.1f}; at most 117.7)"
        message = (
            f"{count_nouns(self.pool, 'training task')}: {difference} in new tasks than in those trained on; bound by "
            f"information {bounds}"
        )
        if diverged:
            message += f"; {count_nouns(diverged, 'run')} diverged, which counts as failed throughout"
        return summary | {"diverged": diverged, "message": message}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        """Left the failures of each draw, right the gap beside its bounds."""
        drawn, (left, right) = panels(2, columns=2, height=2.9)
        own, other = ([100 * row[key] for row in rows] for key in ("own", "other"))
        most = max(*own, *other, 1.0)
        left.plot([0, most], [0, most], color=GREY, linewidth=0.8, linestyle="--", label="no gap")
        left.plot(own, other, "o", color=COLOURS[0], label="a run")
        left.legend()
        finish(left, "Failed queries, %", "tasks trained on", "their substitutes")
        gap, *bounds = (100 * summary[key] for key in ("gap", "bound", "plugin_bound"))
        right.barh([0], [gap], xerr=[100 * summary["half_gap"]], color=COLOURS[0], capsize=3)
        right.barh([1, 2], bounds, color=COLOURS[1:3])
        right.invert_yaxis()
        finish(right, "Generalisation gap and estimates of its bound", "points", "")
        right.set_yticks(range(3), ["gap", "root of the\nmean", "mean of\nroots"])
        return [Drawing("information_bound", f"{summary['message']}.", drawn)]
