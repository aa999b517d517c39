"""Figures that several analyses share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from metarun.report.drawing import Drawing, spans_much

Map = tuple[str, Sequence[float], Sequence[Sequence[float | None]]]
"""What the rows are, their values, and the numbers [rows, columns]."""


def heat_map(name: str, what: str, maps: Sequence[Map], columns: str, values: Sequence[float]) -> Drawing:
    """One panel a map, with the numbers in the cells; what is not finite is hatched."""
    figure = Figure(figsize=(1.4 + 0.62 * len(values) * len(maps), 1.3 + 0.34 * max(len(m[1]) for m in maps)))
    figure.set_layout_engine("constrained")
    grids = [np.array([[np.nan if v is None else v for v in row] for row in m[2]], dtype=float) for m in maps]
    norm = _norm(np.concatenate([g.ravel() for g in grids]))
    for axes, (label, ticks, _), grid in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, grids, strict=True):
        shown = axes.imshow(grid, aspect="auto", origin="lower", cmap="cividis", norm=norm)
        axes.set_facecolor("white")
        axes.grid(False)
        axes.set(xlabel=columns, ylabel=label, title=f"{what} by {label}")
        axes.set_xticks(range(len(values)), [f"{v:g}" for v in values])
        axes.set_yticks(range(len(ticks)), [f"{t:.3g}" for t in ticks])
        for (y, x), value in np.ndenumerate(grid):
            _number(axes, x, y, value, norm)
    figure.colorbar(shown, ax=figure.axes, label=what)
    return Drawing(name, f"{what} for each {' and '.join(m[0] for m in maps)} by {columns}.", figure)


def _norm(values: Any) -> Normalize:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return Normalize(0, 1)
    return LogNorm(finite.min(), finite.max()) if spans_much([finite]) else Normalize(finite.min(), finite.max())


def _number(axes: Any, x: int, y: int, value: float, norm: Normalize) -> None:
    if not np.isfinite(value):
        axes.text(x, y, "not\nfinite", ha="center", va="center", fontsize=6, color="#D55E00")
        return
    colour = "white" if float(norm(value)) < 0.5 else "black"
    axes.text(x, y, f"{value:.3g}", ha="center", va="center", fontsize=7, color=colour)
