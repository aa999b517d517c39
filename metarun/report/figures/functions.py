"""What a learner of distributions predicted on test tasks: functions with their bands, or completed images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarun.report.figures.drawing import GREY, Drawing, finish, legend_below, look, panels
from metarun.report.read.runs import Run

FUNCTIONS_TEXT = (
    "Test tasks: the mean and the central 95 % band that were predicted from the context points, draws of the latent "
    "variables if the learner has them (thin), and mean and band of the exact posterior if it is known (dashed)."
)
PICTURES_TEXT = (
    "Test images, one a column: the pixels of the context (all others blue), the predicted mean and standard deviation "
    "of each pixel, and the image itself. Dark is ink, or a large deviation: the scale of deviations ends at the "
    "largest that is shown."
)
MAX_TASKS = 6  # that are drawn
BAND = 1.96
UNKNOWN = "#8FB3E8"
SIDE, GAP, LEFT, TOP = 1.45, 0.1, 0.85, 0.25  # inches: a picture, between two, and margins for words


def draw_predictions(run: Run) -> tuple[Drawing | None, str]:
    """Return the figure of predicted functions or images and a text to go with it; None if none were stored."""
    if not run.functions:
        return None, ""
    if "picture" in run.functions:
        return draw_pictures(run), PICTURES_TEXT
    return draw_functions(run), FUNCTIONS_TEXT


def draw_functions(run: Run) -> Drawing:
    """Draw a panel for each task."""
    x, tasks = np.asarray(run.functions["x"], dtype=float), list(run.functions["tasks"])[:MAX_TASKS]
    figure, axes = panels(len(tasks), columns=2, legend=8, height=2.8)
    for at, (task, ax) in enumerate(zip(tasks, axes, strict=True)):
        draw_task(ax, x, task)
        finish(ax, f"Test task {at}", "x", "y")
    handles, labels = axes[0].get_legend_handles_labels()
    legend_below(figure, handles, labels)
    deviations = ", ".join(f"{np.mean(np.asarray(task['deviation'], dtype=float)):.3g}" for task in tasks)
    alt = f"Predicted functions of {len(tasks)} test tasks; mean deviations {deviations}."
    return Drawing("functions", alt, figure)


def draw_task(ax: Axes, x: np.ndarray, task: Mapping[str, Any]) -> None:
    """Draw the prediction of one task at inputs `x` [G]: mean, band, draws, exact posterior, points."""
    own, task = look(0), {key: np.asarray(values, dtype=float) for key, values in task.items()}
    mean, deviation, draws = task["mean"], task["deviation"], task["draws"]
    low, high = mean - BAND * deviation, mean + BAND * deviation
    ax.fill_between(x, low, high, color=own.colour, alpha=0.18, linewidth=0, label="95 % band")
    if np.ptp(draws, axis=0).max() > 0:
        for at, row in enumerate(draws):
            label = "" if at else "draws of the latent variables"
            ax.plot(x, row, color=own.colour, linewidth=0.5, alpha=0.6, label=label)
    ax.plot(x, mean, color=own.colour, linewidth=1.6, label="predicted mean")
    if "oracle_mean" in task:
        best, around = task["oracle_mean"], task["oracle_deviation"]
        ax.plot(x, best, color=GREY, linestyle="--", linewidth=1.1, label="exact posterior, 95 %")
        for side in (-BAND, BAND):
            ax.plot(x, best + side * around, color=GREY, linestyle=(0, (2, 2)), linewidth=0.8)
    ax.plot(*task["targets"], ".", color=look(1).colour, markersize=3, label="targets")
    ax.plot(*task["context"], "o", color="black", markersize=4, label="context")
    # Limited to the points, with a margin: a band that is far wider leaves the panel.
    y = np.concatenate([task["targets"][1], task["context"][1]])
    margin = max(0.6 * float(np.ptp(y)), 0.1)
    ax.set_ylim(float(y.min()) - margin, float(y.max()) + margin)


def draw_pictures(run: Run) -> Drawing:
    """Draw a column for each test image, rows of context, mean, deviation, truth."""
    shape, tasks = tuple(run.functions["picture"]), list(run.functions["tasks"])[:MAX_TASKS]
    largest = max(float(np.max(task["deviation"])) for task in tasks)
    words = "context", "mean", f"deviation,\n0 to {largest:.2g}", "truth"
    width, height = LEFT + len(tasks) * (SIDE + GAP), TOP + len(words) * (SIDE + GAP)
    figure = Figure(figsize=(width, height))
    colours = matplotlib.colormaps["gray_r"].with_extremes(bad=UNKNOWN)
    for column, task in enumerate(tasks):
        context = np.full(shape, np.nan)  # NaN where a pixel was not shown
        rows, columns = (np.asarray(v).astype(int) for v in task["context"][:2])
        context[rows, columns] = task["context"][2]
        predicted = (np.asarray(task[name], dtype=float).reshape(shape) for name in ("mean", "deviation", "truth"))
        for row, values in enumerate((context, *predicted)):
            left, bottom = LEFT + column * (SIDE + GAP), height - TOP - SIDE - row * (SIDE + GAP)
            ax = figure.add_axes((left / width, bottom / height, SIDE / width, SIDE / height))
            ax.imshow(values, cmap=colours, vmin=0.0, vmax=largest if row == 2 else 1.0, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            ax.spines[:].set(visible=True, linewidth=0.4)
            if column == 0:
                ax.set_ylabel(words[row])
        figure.axes[column * len(words)].set_title(f"{len(task['context'][2])} pixels", loc="center")
    errors = [float(np.sqrt(np.mean(np.square(np.subtract(t["mean"], t["truth"]))))) for t in tasks]
    shown = ", ".join(f"{v:.3g}" for v in errors)
    return Drawing("functions", f"{len(tasks)} completed test images; root mean square errors {shown}.", figure)
