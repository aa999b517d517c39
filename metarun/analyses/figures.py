"""Drawing that several analyses share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from metarun.report.figures.drawing import COLOURS, Drawing, finish, needs_log_scale

Map = tuple[str, Sequence[float], Sequence[Sequence[float | None]]]
"""The axis of the rows, its values, and the numbers [rows, columns]."""

FAR = 50
"""Times the median size, beyond which a value takes a linear axis for itself."""

SPAN = 1000
"""The colours of a logarithmic map reach so many times its median up and down: one diverged cell does not take all."""


def heat_map(
    name: str,
    what: str,
    maps: Sequence[Map],
    columns: str,
    values: Sequence[float],
    marked: Sequence[tuple[int, int]] = (),
) -> Drawing:
    """One panel per map, with the numbers in the cells and a frame around the `marked` (row, column) of each map."""
    size = 1.4 + 0.62 * len(values) * len(maps), 1.3 + 0.34 * max(len(m[1]) for m in maps)
    figure = Figure(figsize=size, layout="constrained")
    grids = [np.array(m[2], dtype=float) for m in maps]  # None becomes NaN
    everything = np.concatenate([g.ravel() for g in grids])
    norm = colour_norm(everything)
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, (label, ticks, _), grid in zip(panels, maps, grids, strict=True):
        shown = draw_grid(axes, grid, norm, _short)
        axes.set_facecolor("white")
        axes.set(xlabel=columns, ylabel=label, title=f"{what} by {label}")
        axes.set_xticks(range(len(values)), [f"{v:g}" for v in values])
        axes.set_yticks(range(len(ticks)), [f"{t:.3g}" for t in ticks])
        for y, x in np.argwhere(~np.isfinite(grid)):
            axes.text(x, y, "not\nfinite", ha="center", va="center", fontsize=6, color=COLOURS[1])
    for axes, (row, column) in zip(panels, marked, strict=False):
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=2.2))
    below, above = bool((everything < norm.vmin).any()), bool((everything > norm.vmax).any())
    beyond = {(False, False): "neither", (False, True): "max", (True, False): "min", (True, True): "both"}
    figure.colorbar(shown, ax=figure.axes, label=what, extend=beyond[below, above])
    return Drawing(name, f"{what} for each {' and '.join(m[0] for m in maps)} by {columns}.", figure)


def draw_grid(axes: Axes, grid: np.ndarray, norm: Normalize, text: Callable[[float], str]) -> AxesImage:
    """Draw a grid [rows, columns] in colours, with the text of each finite number in its cell."""
    image = axes.imshow(grid, aspect="auto", origin="lower", cmap="cividis", norm=norm)
    axes.grid(False)
    for (y, x), value in np.ndenumerate(grid):
        if np.isfinite(value):
            colour = "white" if float(norm(value)) < 0.5 else "black"
            axes.text(x, y, text(float(value)), ha="center", va="center", fontsize=7, color=colour)
    return image


def plot_known(axes: Axes, x: Iterable[float | None], y: Iterable[float | None], **look: Any) -> None:
    """Plot the points of which both numbers are known, if there are any; without a line, unless `look` has a style."""
    known = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    if known:
        axes.plot(*zip(*known, strict=True), **({"linestyle": "none"} | look))


def colour_norm(values: np.ndarray) -> Normalize:
    """The colours of finite values: logarithmic if they span much, and then within `SPAN` of the median."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return Normalize(0, 1)
    low, high, middle = finite.min(), finite.max(), np.median(finite)
    if needs_log_scale([finite]):
        return LogNorm(max(low, middle / SPAN), min(high, middle * SPAN), clip=True)
    return Normalize(low, high if high > low else low + 1)


def _short(value: float) -> str:
    """Three digits; one and a power of ten where these would not fit a cell."""
    fits = value == 0 or 1e-3 <= abs(value) < 1000
    return f"{value:.3g}" if fits else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def finish_sizes(axes: Axes, title: str, x: str, y: str, sizes: Sequence[int], shown: np.ndarray) -> None:
    """Title, labels and scales of a panel whose horizontal axis is a size of the training data, with a tick at each.

    A logarithmic vertical axis ends near the values `shown`, since an interval may reach below 0. If one value is far
    from the others, which may have both signs, the axis is linear around 0 only.
    """
    axes.set_xscale("log")
    finish(axes, title, x, y, [shown])
    magnitudes = np.abs(shown[np.isfinite(shown)])
    if axes.get_yscale() == "log":
        axes.set_ylim(magnitudes.min() / 3, magnitudes.max() * 3)
    elif len(magnitudes) > 1 and magnitudes.max() > FAR * np.median(magnitudes) > 0:
        axes.set_yscale("symlog", linthresh=10.0 ** np.ceil(np.log10(np.median(magnitudes))))
        axes.set_ylim(3 * min(float(np.nanmin(shown)), 0.0), 3 * float(np.nanmax(shown)))
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()


def format_number(value: float | None) -> str:
    """Three digits, or "none"."""
    return "none" if value is None else f"{value:.3g}"
