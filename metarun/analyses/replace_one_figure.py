"""The figure of replace_one: changes of loss, distance of weights and generalisation gap by size of the pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from metarun.analyses.figures import limit
from metarun.report.figures.drawing import COLOURS, GREY, Drawing, finish, legend_below, panels

Rows = Sequence[dict[str, Any]]
LOOKS = {  # colour, dash, marker
    "sup": (COLOURS[1], (0, (5, 1.5)), "^", "one task replaced, supremum"),
    "median": (COLOURS[0], "-", "o", "one task replaced, median task"),
    "floor": (GREY, (0, (1.5, 1)), "s", "only the seed changed"),
}


def draw_pools(rows: Rows, summary: dict[str, Any]) -> Drawing:
    """Small dots are single exchanged tasks. The mean over test tasks is left to the table: a few whose adaptation
    blows up decide it."""
    pools, loss = sorted(summary["pools"], key=lambda p: p["pool"]), summary["loss"]
    figure, (left, middle, right) = panels(3, legend=4, height=2.9)
    _singles(left, rows, "median")
    _line(left, pools, "sup", "sup")
    _line(left, pools, "median", "median")
    _line(left, pools, "floor_median", "floor")
    _reference(left, pools)
    _singles(middle, rows, "relative")
    _line(middle, pools, "relative", "median")
    _line(middle, pools, "floor_relative", "floor")
    _gap(right, pools)
    for axes in (left, middle, right):
        axes.set_xscale("log")
    _finish(
        left, "Change of a test task's query loss", f"change of loss ({loss})", pools, ("median", "sup", "floor_median")
    )
    _finish(middle, "Distance of the weights", "distance / norm of weights", pools, ("relative", "floor_relative"))
    _finish(right, "Generalisation gap", f"loss on new - on training tasks ({loss})", pools, ("gap",))
    legend_below(figure, *left.get_legend_handles_labels())
    said = " ".join(f"{p['pool']} tasks: median {_said(p['median'])}, sup {_said(p['sup'])}." for p in pools)
    return Drawing("replace_one", f"Change of test losses when one training task is replaced. {said}", figure)


def _line(axes: Axes, pools: Rows, key: str, kind: str) -> None:
    found = [(p["pool"], p[key]) for p in pools if p[key] is not None]
    if found:
        colour, dash, marker, label = LOOKS[kind]
        axes.plot(*zip(*found, strict=True), color=colour, linestyle=dash, marker=marker, label=label)


def _singles(axes: Axes, rows: Rows, key: str) -> None:
    found = [(r["pool"], r[key]) for r in rows if r["run"] == "replaced" and r[key] is not None]
    if found:
        axes.plot(*zip(*found, strict=True), ".", color=COLOURS[5], markersize=4, zorder=1)


def _reference(axes: Axes, pools: Rows) -> None:
    known = [p for p in pools if p["median"]]
    if len(known) > 1:
        n = np.array([p["pool"] for p in known], dtype=float)
        axes.plot(n, known[0]["median"] * n[0] / n, color="black", linewidth=0.8, label="~ 1/n, for reference")


def _gap(axes: Axes, pools: Rows) -> None:
    found = [(p["pool"], p["gap"], p["gap_half"]) for p in pools if p["gap"] is not None]
    if found:
        n, gap, half = zip(*found, strict=True)
        axes.errorbar(n, gap, yerr=half, fmt="o-", color=COLOURS[2], capsize=3)
    axes.axhline(0, color=GREY, linewidth=0.8)


def _finish(axes: Axes, title: str, y: str, pools: Rows, keys: Sequence[str]) -> None:
    shown = np.array([p[k] for p in pools for k in keys if p[k]], dtype=float)
    finish(axes, title, "training tasks n", y, [shown])
    limit(axes, shown)
    ticks = [p["pool"] for p in pools]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()


def _said(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"
