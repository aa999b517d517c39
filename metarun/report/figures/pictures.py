"""Completed images: what a learner of distributions was shown of each test image, predicted of it, and was wrong by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarun.report.figures.drawing import Drawing
from metarun.report.read.runs import Run

TEXT = (
    "Test images, one a column: the pixels of the context (all others blue), the predicted mean and standard deviation "
    "of each pixel, and the image itself. Dark is ink, or a large deviation: the scale of deviations ends at the "
    "largest that is shown."
)
MOST = 6  # images that are drawn
UNKNOWN = "#8FB3E8"
SIDE, GAP, LEFT, TOP = 1.45, 0.1, 0.85, 0.25  # inches: a picture, between two, and margins for words


def has_some(run: Run) -> bool:
    return "picture" in run.functions


def draw(run: Run) -> Drawing:
    """A column for each test image, rows of context, mean, deviation, truth."""
    shape, tasks = tuple(run.functions["picture"]), list(run.functions["tasks"])[:MOST]
    largest = max(float(np.max(task["deviation"])) for task in tasks)
    words = "context", "mean", f"deviation,\n0 to {largest:.2g}", "truth"
    drawn = Figure(figsize=(LEFT + len(tasks) * (SIDE + GAP), TOP + len(words) * (SIDE + GAP)))
    for column, task in enumerate(tasks):
        shown = (_context(task, shape), *(_picture(task[name], shape) for name in ("mean", "deviation", "truth")))
        for row, values in enumerate(shown):
            ax = drawn.add_axes(_box(row, column, drawn))
            _image(ax, values, largest if row == 2 else 1.0)
            if column == 0:
                ax.set_ylabel(words[row])
        drawn.axes[column * len(words)].set_title(f"{len(task['context'][2])} pixels", loc="center")
    off = [float(np.sqrt(np.mean(np.square(np.subtract(t["mean"], t["truth"]))))) for t in tasks]
    said = ", ".join(f"{v:.3g}" for v in off)
    return Drawing("functions", f"{len(tasks)} completed test images; root mean square errors {said}.", drawn)


def _box(row: int, column: int, drawn: Figure) -> tuple[float, float, float, float]:
    """Left, bottom, width and height as shares of the figure."""
    width, height = drawn.get_size_inches()
    left, bottom = LEFT + column * (SIDE + GAP), height - TOP - SIDE - row * (SIDE + GAP)
    return left / width, bottom / height, SIDE / width, SIDE / height


def _image(ax: Axes, values: np.ndarray, top: float) -> None:
    shades = matplotlib.colormaps["gray_r"].with_extremes(bad=UNKNOWN)
    ax.imshow(values, cmap=shades, vmin=0.0, vmax=top, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set(visible=True, linewidth=0.4)


def _picture(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(values, dtype=float).reshape(shape)


def _context(task: Mapping[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """Not a number where a pixel was not shown."""
    picture = np.full(shape, np.nan)
    rows, columns = (np.asarray(v).astype(int) for v in task["context"][:2])
    picture[rows, columns] = task["context"][2]
    return picture
