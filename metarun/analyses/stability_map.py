r"""Where training is stable: train again at each inner rate and number of inner steps.

A cell is a factor of the run's `inner_lr` by a number of inner steps K (in training and, for learners that test with as
many, at test), trained for `train_steps` outer steps with each of a few seeds:

    figure          test metric of the last weights, mean over the seeds that did not diverge
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
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from metarun.analyses.analysis import Cell, Context, Row, require_at_least
from metarun.analyses.figures import colour_norm, draw_grid
from metarun.analyses.stability import evaluate_last_weights, measure_rate_curvature, read_last_record
from metarun.errors import UserError, require
from metarun.report.figures.drawing import COLOURS, Drawing
from metarun.storage.text import NOTHING, axis_label, display_scale, format_metric
from metarun.types import GradientLearner

MEASURES = ("figure", "rate_curvature", "rate_curvature_max", "contraction")
LIMIT = 2.0
"""Of rate times curvature: beyond it gradient descent on a quadratic diverges."""


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
        require_at_least(self, seeds=1, train_steps=1, tasks=2)

    def cells(self, context: Context) -> Sequence[Cell]:
        learner = context.assemble().algorithm
        if not isinstance(learner, GradientLearner):
            raise UserError("analysis=stability_map: this run's algorithm has no inner loop with a rate to change")
        return [{"inner_lr": learner.inner_lr * f, "inner_steps": k} for f in self.rates for k in self.steps]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        changes = {"algo.inner_lr": cell["inner_lr"], "algo.inner_steps": cell["inner_steps"]}
        algo = context.config.algo
        if algo.get("test_inner_steps") == algo.get("inner_steps"):
            changes["algo.test_inner_steps"] = cell["inner_steps"]
        changes["train.steps"] = self.train_steps
        stem, first = f"rate-{cell['inner_lr']:g}-steps-{cell['inner_steps']}", context.config.seed
        seeds = {f"{stem}-seed-{s}": changes | {"seed": s} for s in range(first, first + self.seeds)}
        runs = []
        for name, run in context.train_all(seeds).items():
            experiment = context.assemble(seeds[name])
            outcome = evaluate_last_weights(experiment, run, self.tasks)
            found = {"diverged": float(run.diverged), "figure": float(outcome.new_scores.mean()) if outcome else None}
            runs.append(found | read_last_record(run, ("contraction",)) | measure_rate_curvature(experiment, run))
        row: dict[str, Any] = {"diverged": sum(r["diverged"] for r in runs) / self.seeds}
        for name in MEASURES:
            finite = [r[name] for r in runs if r[name] is not None and np.isfinite(r[name])]
            row[name] = float(np.mean(finite)) if finite else None
        return row

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        loss = context.assemble().algorithm.loss
        sound = [r for r in rows if r["figure"] is not None and not r["diverged"]]
        summary = {"metric": loss.metric, "sound": len(sound), "cells": len(rows), "best": None}
        message = f"no seed diverged in {len(sound)} of {len(rows)} cells"
        if sound:
            best = (max if loss.higher_is_better else min)(sound, key=lambda r: r["figure"])
            summary["best"] = {k: best[k] for k in ("inner_lr", "inner_steps", "figure")}
            where = f"inner_lr={best['inner_lr']:g}, inner_steps={best['inner_steps']}"
            message += f"; best test {loss.metric} {format_metric(loss.metric, best['figure'])} at {where}"
        return summary | {"message": message}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        """Four maps. Rows are inner rates, the smallest at the bottom, columns numbers of inner steps."""
        rates, steps = (sorted({r[key] for r in rows}) for key in ("inner_lr", "inner_steps"))
        at = {(r["inner_lr"], r["inner_steps"]): r for r in rows}
        metric = summary["metric"]
        titles = {
            "figure": (f"test {axis_label(metric)}", display_scale(metric)),
            "diverged": ("diverged trainings, %", 100.0),
            "rate_curvature": ("inner rate x largest eigenvalue", 1.0),
            "contraction": ("contraction of the inner loop", 1.0),
        }
        grids = {key: np.array([[at[r, k][key] for k in steps] for r in rates], dtype=float) for key in titles}
        width = max(0.75 + 0.42 * len(steps), 2.1)  # of a map; the longest title needs 2.1 inches
        drawn = Figure(figsize=(1.0 + 4 * width, 1.25 + 0.38 * len(rates)), layout="constrained")
        for axes, (key, (title, scale)) in zip(drawn.subplots(1, 4, sharey=True), titles.items(), strict=True):
            grid = scale * grids[key]
            draw_grid(axes, grid, colour_norm(grid), "{:.3g}".format)
            for y, x in np.argwhere(~np.isfinite(grid)):
                axes.text(x, y, NOTHING, ha="center", va="center", fontsize=7, color="black")
            axes.set_title(title, fontsize=8)
            axes.set_xticks(range(len(steps)), [str(k) for k in steps])
            axes.set_yticks(range(len(rates)), [f"{r:.3g}" for r in rates])
            axes.set_xlabel("inner steps")
            for y, x in np.argwhere(grids["rate_curvature"] > LIMIT):
                corner = (x - 0.46, y - 0.46)
                axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor=COLOURS[1], linewidth=1.6))
            axes.set_ylabel("inner rate" if key == "figure" else "")
        drawn.supxlabel(f"framed: inner rate x largest eigenvalue above {LIMIT:g};  {NOTHING}: no number", fontsize=7.5)
        alt = f"Test {metric}, share of diverged runs, rate times curvature and contraction by inner rate and steps."
        return [Drawing("stability_map", alt, drawn)]
