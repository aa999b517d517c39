"""The figure of data_amount: figures on training tasks and on new ones, and their gap, by amount."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from metarun.analyses.figures import limit
from metarun.report.figures.drawing import COLOURS, GREY, Drawing, finish, panels
from metarun.storage.text import axis_label, display_scale, format_metric

Rows = Sequence[dict[str, Any]]


def draw_amounts(rows: Rows, summary: dict[str, Any]) -> Drawing:
    """Small dots are seeds, bars Student's 95 % intervals over them."""
    metric, told = summary["metric"], sorted(summary["amounts"], key=lambda t: t["amount"])
    scale, x = display_scale(metric), f"training {summary['of']} n"
    drawn, (left, right) = panels(2, columns=2, height=3.0)
    for key, colour, marker, label in (
        ("train", COLOURS[0], "o", f"the training {summary['of']}"),
        ("test", COLOURS[1], "s", "new tasks"),
    ):
        _seeds(left, rows, key, colour, scale)
        _means(left, told, key, colour, marker, label, scale)
    left.legend()
    _seeds(right, rows, "gap", COLOURS[2], scale)
    _means(right, told, "gap", COLOURS[2], "D", "gap", scale)
    right.axhline(0, color=GREY, linewidth=0.8)
    if summary["c"] is not None:
        n = np.geomspace(told[0]["amount"], told[-1]["amount"], 50)
        line = scale * summary["c"] * n**-0.5
        right.plot(n, line, color="black", linestyle=(0, (5, 1.5)), linewidth=1, label="c / √n, fitted, for reference")
    right.legend()
    for axes, keys, title, y in (
        (left, ("train", "test"), "Figure after adaptation", axis_label(metric)),
        (right, ("gap",), "How much better on the tasks of training", f"gap in {axis_label(metric)}"),
    ):
        shown = np.array([scale * t[k] for t in told for k in keys if t[k] is not None], dtype=float)
        axes.set_xscale("log")
        finish(axes, title, x, y, [shown])
        limit(axes, shown)
        axes.set_xticks([t["amount"] for t in told], [str(t["amount"]) for t in told])
        axes.minorticks_off()
    said = " ".join(f"{t['amount']}: {format_metric(metric, t['test'])}." for t in told)
    return Drawing("data_amount", f"Test {metric} by training {summary['of']}. {said}", drawn)


def _seeds(axes: Axes, rows: Rows, key: str, colour: str, scale: float) -> None:
    found = [(r["amount"], scale * r[key]) for r in rows if r.get(key) is not None]
    if found:
        axes.plot(*zip(*found, strict=True), ".", color=colour, markersize=4, alpha=0.5, zorder=1)


def _means(axes: Axes, told: Rows, key: str, colour: str, marker: str, label: str, scale: float) -> None:
    found = [(t["amount"], scale * t[key], scale * (t[f"{key}_half"] or 0)) for t in told if t[key] is not None]
    if found:
        n, mean, half = (np.array(v, dtype=float) for v in zip(*found, strict=True))
        half = np.where(np.isfinite(half), half, 0)
        axes.errorbar(n, mean, yerr=half, fmt=f"{marker}-", color=colour, capsize=3, label=label)
