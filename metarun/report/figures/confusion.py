"""The confusion matrix of a test with `test.details=true`."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from metarun.report.figures.drawing import Drawing, plain
from metarun.report.read.details import Details
from metarun.storage.text import count_nouns

MOST_CLASSES = 40  # that a figure can name
MOST_NUMBERS = 16  # classes up to which each cell has its number
NAME = 24  # characters of a class name
LETTER = 0.075  # inches
UNKNOWN = "#e4e4e4"  # two classes that no task had both


def draw_confusion(details: Details) -> Drawing | None:
    """Row: a class; column: what its queries were taken for, as a share of those in tasks that have both classes. None
    for more classes than a figure can name."""
    names = sorted({name for name, _ in details.confusion})
    if not 2 <= len(names) <= MOST_CLASSES:
        return None
    together = np.array([[details.count_together(a, b) for b in names] for a in names], dtype=float)
    taken = np.array([[details.confusion.get((a, b), 0) for b in names] for a in names], dtype=float)
    share = np.divide(taken, together, out=np.full_like(taken, np.nan), where=together > 0)
    shown = [plain(name, NAME) for name in names]
    side = max(3.0, min(8.0, 0.42 * len(names)))
    margin = 0.4 + LETTER * max(map(len, shown))
    figure = Figure(figsize=(side + margin + 0.9, side + margin + 0.4))
    width, height = figure.get_size_inches()
    axes = figure.add_axes((margin / width, margin / height, side / width, side / height))
    colours = matplotlib.colormaps["Blues"].with_extremes(bad=UNKNOWN)
    image = axes.imshow(np.ma.masked_invalid(100 * share), cmap=colours, norm=PowerNorm(0.5, 0, 100), aspect="auto")
    size = 7 if len(names) <= MOST_NUMBERS else 6
    axes.set_xticks(range(len(names)), shown, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), shown, fontsize=size)
    axes.set(xlabel="taken for", ylabel="class")
    axes.set_title("Queries taken for another class, %", y=1.01)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for i, j in np.argwhere(together > 0) if len(names) <= MOST_NUMBERS else ():
        colour = "white" if share[i, j] > 0.4 else "black"
        axes.text(j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", fontsize=7, color=colour)
    bar = figure.add_axes(((margin + side + 0.15) / width, margin / height, 0.14 / width, side / height))
    figure.colorbar(image, cax=bar, ticks=[0, 1, 5, 10, 25, 50, 100])
    return Drawing("confusion", _describe(names, share), figure)


def _describe(names: list[str], share: np.ndarray) -> str:
    wrong = np.where(np.eye(len(names), dtype=bool) | np.isnan(share), 0, share)
    i, j = np.unravel_index(wrong.argmax(), wrong.shape)
    worst = f"; most: {names[i]} taken for {names[j]}, {100 * wrong[i, j]:.0f} %" if wrong[i, j] else ""
    return f"Confusion matrix of {count_nouns(len(names), 'class', 'classes')}{worst}."
