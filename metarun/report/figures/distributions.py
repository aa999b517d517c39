"""Functions that a run predicted, with their bands, beside the best possible predictor's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from metarun.report.figures.drawing import GREY, Drawing, finish, legend_below, look, panels
from metarun.report.read.runs import Run

TEXT = (
    "Test tasks: the mean and the central 95 % band that were predicted from the context points, draws of what is "
    "latent where the learner has such (thin), and mean and band of the exact posterior where it is known (dashed)."
)
MOST = 6  # tasks that are drawn
BAND = 1.96


def draw(run: Run) -> Drawing | None:
    """A panel for each task; None where no functions were kept."""
    if not run.functions:
        return None
    x, tasks = np.asarray(run.functions["x"], dtype=float), list(run.functions["tasks"])[:MOST]
    drawn, axes = panels(len(tasks), columns=2, legend=8, height=2.8)
    for at, (task, ax) in enumerate(zip(tasks, axes, strict=True)):
        draw_task(ax, x, task)
        finish(ax, f"Test task {at}", "x", "y")
        keep_in_view(ax, task)
    handles, labels = axes[0].get_legend_handles_labels()
    legend_below(drawn, handles, labels)
    off = [float(np.mean(np.asarray(task["deviation"], dtype=float))) for task in tasks]
    said = ", ".join(f"{v:.3g}" for v in off)
    return Drawing("functions", f"Predicted functions of {len(tasks)} test tasks; mean deviations {said}.", drawn)


def draw_task(ax: Axes, x: np.ndarray, task: Mapping[str, Any]) -> None:
    own = look(0)
    mean, deviation = (np.asarray(task[key], dtype=float) for key in ("mean", "deviation"))
    ax.fill_between(
        x,
        mean - BAND * deviation,
        mean + BAND * deviation,
        color=own.colour,
        alpha=0.18,
        linewidth=0,
        label="95 % band",
    )
    draws = np.asarray(task["draws"], dtype=float)
    if np.ptp(draws, axis=0).max() > 0:
        for at, row in enumerate(draws):
            label = "" if at else "draws of what is latent"
            ax.plot(x, row, color=own.colour, linewidth=0.5, alpha=0.6, label=label)
    ax.plot(x, mean, color=own.colour, linewidth=1.6, label="predicted mean")
    if "oracle_mean" in task:
        best, around = (np.asarray(task[key], dtype=float) for key in ("oracle_mean", "oracle_deviation"))
        ax.plot(x, best, color=GREY, linestyle="--", linewidth=1.1, label="exact posterior, 95 %")
        for side in (-BAND, BAND):
            ax.plot(x, best + side * around, color=GREY, linestyle=(0, (2, 2)), linewidth=0.8)
    targets, context = (np.asarray(task[key], dtype=float) for key in ("targets", "context"))
    ax.plot(*targets, ".", color=look(1).colour, markersize=3, label="targets")
    ax.plot(*context, "o", color="black", markersize=4, label="context")


def keep_in_view(ax: Axes, task: Mapping[str, Any]) -> None:
    """What the points need, with room: a band that is far wider says so by leaving the panel."""
    y = np.concatenate([np.asarray(task[key], dtype=float)[1] for key in ("targets", "context")])
    room = max(0.6 * float(np.ptp(y)), 0.1)
    ax.set_ylim(float(y.min()) - room, float(y.max()) + room)
