"""Completed images: what a learner of distributions was shown of each test image, predicted of it, and was wrong by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from metarun.report.drawing import WIDTH, Drawing, panels
from metarun.report.read import Run

TEXT = (
    "Test images, one a column: the pixels of the context (all others blue), the predicted mean and standard deviation "
    "of each pixel, and the image itself. Means and images share a scale from 0 (paper) to 1 (ink); deviations have "
    "their own, from 0 (black) to the largest of all images (white)."
)
MOST = 6  # images that are drawn
UNKNOWN = "#466EBE"


def has_some(run: Run) -> bool:
    return "picture" in run.functions


def draw(run: Run) -> Drawing:
    """A column for each test image, rows of context, mean, deviation, truth."""
    shape, tasks = tuple(run.functions["picture"]), list(run.functions["tasks"])[:MOST]
    largest = max(float(np.max(task["deviation"])) for task in tasks)
    columns = len(tasks)
    drawn, axes = panels(4 * columns, columns=columns, height=WIDTH / columns)
    for at, task in enumerate(tasks):
        known = len(task["context"][2])
        shown = (
            (f"image {at}: {known} pixels", _context(task, shape), 1.0),
            ("mean", _picture(task["mean"], shape), 1.0),
            (f"deviation, 0 to {largest:.2g}", _picture(task["deviation"], shape), largest),
            ("truth", _picture(task["truth"], shape), 1.0),
        )
        for row, (title, values, top) in enumerate(shown):
            _image(axes[row * columns + at], title, values, top)
    off = [float(np.sqrt(np.mean(np.square(np.subtract(t["mean"], t["truth"]))))) for t in tasks]
    said = ", ".join(f"{v:.3g}" for v in off)
    return Drawing("functions", f"{columns} completed test images; root mean square errors {said}.", drawn)


def _image(ax: Axes, title: str, values: np.ndarray, top: float) -> None:
    grey = ListedColormap(np.linspace(0, 1, 256)[:, None].repeat(3, 1))
    grey.set_bad(UNKNOWN)
    ax.imshow(values, cmap=grey, vmin=0.0, vmax=top, interpolation="nearest")
    ax.set_title(title, y=1.0)
    ax.set_axis_off()


def _picture(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(values, dtype=float).reshape(shape)


def _context(task: Mapping[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """Not a number where a pixel was not shown."""
    picture = np.full(shape, np.nan)
    rows, columns = (np.asarray(v).astype(int) for v in task["context"][:2])
    picture[rows, columns] = task["context"][2]
    return picture
