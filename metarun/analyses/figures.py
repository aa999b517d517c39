"""Figures that several analyses share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from metarun.report.figures.drawing import Drawing, spans_much

Map = tuple[str, Sequence[float], Sequence[Sequence[float | None]]]
"""What the rows are, their values, and the numbers [rows, columns]."""


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
    """One panel a map, with the numbers in the cells and a frame around the `marked` (row, column) of each map; what is
    not finite says so."""
    figure = Figure(figsize=(1.4 + 0.62 * len(values) * len(maps), 1.3 + 0.34 * max(len(m[1]) for m in maps)))
    figure.set_layout_engine("constrained")
    grids = [np.array([[np.nan if v is None else v for v in row] for row in m[2]], dtype=float) for m in maps]
    norm = _norm(np.concatenate([g.ravel() for g in grids]))
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, (label, ticks, _), grid in zip(panels, maps, grids, strict=True):
        shown = axes.imshow(grid, aspect="auto", origin="lower", cmap="cividis", norm=norm)
        axes.set_facecolor("white")
        axes.grid(False)
        axes.set(xlabel=columns, ylabel=label, title=f"{what} by {label}")
        axes.set_xticks(range(len(values)), [f"{v:g}" for v in values])
        axes.set_yticks(range(len(ticks)), [f"{t:.3g}" for t in ticks])
        for (y, x), value in np.ndenumerate(grid):
            _number(axes, x, y, value, norm)
    for axes, (row, column) in zip(panels, marked, strict=False):
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#D55E00", linewidth=2.2))
    figure.colorbar(shown, ax=figure.axes, label=what, extend=_extend(np.concatenate([g.ravel() for g in grids]), norm))
    return Drawing(name, f"{what} for each {' and '.join(m[0] for m in maps)} by {columns}.", figure)


def _norm(values: Any) -> Normalize:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return Normalize(0, 1)
    low, high, middle = finite.min(), finite.max(), np.median(finite)
    if spans_much([finite]):
        return LogNorm(max(low, middle / SPAN), min(high, middle * SPAN), clip=True)
    return Normalize(low, high if high > low else low + 1)


def _extend(values: Any, norm: Normalize) -> str:
    """On which sides of the colour bar there is more."""
    below, above = bool((values < norm.vmin).any()), bool((values > norm.vmax).any())
    return {(False, False): "neither", (False, True): "max", (True, False): "min", (True, True): "both"}[below, above]


def _number(axes: Any, x: int, y: int, value: float, norm: Normalize) -> None:
    if not np.isfinite(value):
        axes.text(x, y, "not\nfinite", ha="center", va="center", fontsize=6, color="#D55E00")
        return
    colour = "white" if float(norm(value)) < 0.5 else "black"
    axes.text(x, y, _short(value), ha="center", va="center", fontsize=7, color=colour)


def _short(value: float) -> str:
    """Three digits; one and a power of ten where these would not fit a cell."""
    fits = value == 0 or 1e-3 <= abs(value) < 1000
    return f"{value:.3g}" if fits else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def limit(axes: Any, shown: np.ndarray) -> None:
    """The vertical axis for these values: logarithmic ones end near them, since an interval may reach below 0, and
    values of both signs of which one is far from the others get a scale that is linear around 0 only."""
    sizes = np.abs(shown[np.isfinite(shown)])
    if axes.get_yscale() == "log":
        axes.set_ylim(sizes.min() / 3, sizes.max() * 3)
    elif len(sizes) > 1 and sizes.max() > FAR * np.median(sizes) > 0:
        axes.set_yscale("symlog", linthresh=10.0 ** np.ceil(np.log10(np.median(sizes))))
        axes.set_ylim(3 * min(float(np.nanmin(shown)), 0.0), 3 * float(np.nanmax(shown)))
