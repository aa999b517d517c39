"""The figure of stability_map: four maps of inner rate by inner steps, cells beyond the stability limit marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from metarun.report.figures.drawing import COLOURS, Drawing, spans_much
from metarun.storage.text import NOTHING, axis_label, display_scale

Rows = Sequence[dict[str, Any]]
LIMIT = 2.0
"""Of rate times curvature: beyond it gradient descent on a quadratic diverges."""


def draw_maps(rows: Rows, summary: dict[str, Any]) -> Drawing:
    """Rows are inner rates, the smallest at the bottom, columns numbers of inner steps."""
    rates, steps = (sorted({r[key] for r in rows}) for key in ("inner_lr", "inner_steps"))
    metric = summary["metric"]
    titles = {
        "figure": (f"test {axis_label(metric)}", display_scale(metric)),
        "diverged": ("diverged trainings, %", 100.0),
        "rate_curvature": ("inner rate x largest eigenvalue", 1.0),
        "contraction": ("contraction of the inner loop", 1.0),
    }
    drawn = Figure(figsize=(1.0 + 4 * (0.75 + 0.42 * len(steps)), 1.25 + 0.38 * len(rates)))
    drawn.set_layout_engine("constrained")
    beyond = _grid(rows, rates, steps, "rate_curvature", 1.0) > LIMIT
    for axes, (key, (title, scale)) in zip(drawn.subplots(1, 4, sharey=True), titles.items(), strict=True):
        _map(axes, _grid(rows, rates, steps, key, scale), title)
        axes.set_xticks(range(len(steps)), [str(k) for k in steps])
        axes.set_yticks(range(len(rates)), [f"{r:.3g}" for r in rates])
        axes.set_xlabel("inner steps")
        for y, x in np.argwhere(beyond):
            axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor=COLOURS[1], linewidth=1.6))
        axes.set_ylabel("inner rate" if key == "figure" else "")
    drawn.supxlabel(f"framed: inner rate x largest eigenvalue above {LIMIT:g};  {NOTHING}: no number", fontsize=7.5)
    text = f"Test {metric}, share of diverged trainings, rate times curvature and contraction by inner rate and steps."
    return Drawing("stability_map", text, drawn)


def _grid(rows: Rows, rates: Sequence[float], steps: Sequence[int], key: str, scale: float) -> np.ndarray:
    grid = np.full((len(rates), len(steps)), np.nan)
    for row in rows:
        if row[key] is not None:
            grid[rates.index(row["inner_lr"]), steps.index(row["inner_steps"])] = scale * row[key]
    return grid


def _map(axes: Axes, grid: np.ndarray, title: str) -> None:
    known = grid[np.isfinite(grid)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    norm: Normalize = LogNorm(low, high) if spans_much([known]) else Normalize(low, max(high, low + 1e-12))
    axes.imshow(grid, aspect="auto", origin="lower", cmap="cividis", norm=norm)
    axes.grid(False)
    axes.set_title(title, fontsize=8)
    for (y, x), value in np.ndenumerate(grid):
        missing = not np.isfinite(value)
        dark = not missing and float(norm(value)) < 0.5
        text = NOTHING if missing else f"{value:.3g}"
        axes.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
