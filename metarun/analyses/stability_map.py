r"""Where training is stable: trained anew at each inner rate and number of inner steps.

A cell is a factor of the run's `inner_lr` by a number of inner steps K (in training and, for learners that test with as
many, at test), trained for `train_steps` outer steps with each of a few seeds:

    figure          test figure of the last weights, mean over the seeds that did not diverge
    diverged        share of the seeds whose training met a loss or meta-gradient that is not finite
    rate_curvature  inner_lr * (largest eigenvalue of the inner objective's Hessian at theta), on probe tasks after
                    training, mean over seeds (metarun/diagnostics/curvature.py). Beyond 2 gradient descent on a
                    quadratic diverges; of a network it is a reference (Cohen et al. 2021, arXiv 2103.00065)
    contraction     of the last training record, mean over seeds (metarun/diagnostics/adaptation.py)

A diverged run is measured at its last good checkpoint, if it has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metarun.analyses.context import Context
from metarun.analyses.frame import Cell, Row
from metarun.analyses.stability import curvature, last_record, learned
from metarun.analyses.stability_map_figure import draw_maps
from metarun.errors import UserError, require
from metarun.report.figures.drawing import Drawing
from metarun.storage.text import format_metric
from metarun.types import GradientLearner

Found = dict[str, float | None]


@dataclass(frozen=True)
class StabilityMap:
    rates: tuple[float, ...]  # factors of algo.inner_lr
    steps: tuple[int, ...]  # algo.inner_steps
    seeds: int
    train_steps: int
    tasks: int  # test episodes

    def __post_init__(self) -> None:
        require(bool(self.rates) and min(self.rates) > 0, "rates", list(self.rates), "must be above 0")
        require(bool(self.steps) and min(self.steps) >= 1, "steps", list(self.steps), "must be at least 1")
        require(self.seeds >= 1, "seeds", self.seeds, "must be at least 1")
        require(self.train_steps >= 1, "train_steps", self.train_steps, "must be at least 1")
        require(self.tasks >= 2, "tasks", self.tasks, "must be at least 2")

    def cells(self, context: Context) -> Sequence[Cell]:
        learner = context.experiment().algorithm
        if not isinstance(learner, GradientLearner):
            raise UserError(
                "analysis=stability_map: this run's algorithm has no inner loop whose rate could be changed"
            )
        return [{"inner_lr": learner.inner_lr * f, "inner_steps": k} for f in self.rates for k in self.steps]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        found = [self._trained(context, cell, context.config.seed + s) for s in range(self.seeds)]
        keys = ("figure", "rate_curvature", "rate_curvature_max", "contraction")
        means = {k: _mean([f[k] for f in found]) for k in keys}
        return {"diverged": sum(f["diverged"] or 0.0 for f in found) / self.seeds, **means}

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        learner: Any = context.experiment().algorithm
        loss = learner.loss
        sound = [r for r in rows if r["figure"] is not None and not r["diverged"]]
        summary = {"metric": loss.metric, "sound": len(sound), "cells": len(rows), "best": None}
        said = f"{len(sound)} of {len(rows)} cells trained with no seed diverging"
        if sound:
            best = (max if loss.higher_is_better else min)(sound, key=lambda r: r["figure"])
            summary["best"] = {k: best[k] for k in ("inner_lr", "inner_steps", "figure")}
            at = f"inner_lr={best['inner_lr']:g}, inner_steps={best['inner_steps']}"
            said += f"; best test {loss.metric} {format_metric(loss.metric, best['figure'])} at {at}"
        return summary | {"message": said}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Drawing:
        return draw_maps(rows, summary)

    def _trained(self, context: Context, cell: Cell, seed: int) -> Found:
        changes = {"seed": seed, "algo.inner_lr": cell["inner_lr"], "algo.inner_steps": cell["inner_steps"]}
        algo = context.config.algo
        if algo.get("test_inner_steps") == algo.get("inner_steps"):
            changes["algo.test_inner_steps"] = cell["inner_steps"]
        changes["train.steps"] = self.train_steps
        run = context.train(f"rate-{cell['inner_lr']:g}-steps-{cell['inner_steps']}-seed-{seed}", changes)
        experiment = context.experiment(changes)
        state = learned(experiment, run, self.tasks)
        found: Found = {"diverged": float(run.diverged), "figure": float(state.new_scores.mean()) if state else None}
        return found | last_record(run, ("contraction",)) | curvature(experiment, run)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None and np.isfinite(v)]
    return float(np.mean(known)) if known else None
