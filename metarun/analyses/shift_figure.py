"""The figure of task_shift: each shift's figure beside chance and the figure before adaptation, and its difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarun.report.figures.drawing import COLOURS, GREY, Drawing, plain, spans_much
from metarun.storage.text import axis_label, display_scale, format_metric

ROW, LEGEND = 0.24, 0.3  # inches


def draw_shifts(rows: Sequence[dict[str, Any]], metric: str) -> Drawing:
    """One line a shift, the unshifted one first; what was left out says so in its line."""
    height = 0.95 + LEGEND + ROW * len(rows)
    drawn = Figure(figsize=(9.2, height))
    foot, top = (0.5 + LEGEND) / height, 1 - 0.3 / height
    left, right = (drawn.add_axes((x, foot, w, top - foot)) for x, w in ((0.19, 0.42), (0.64, 0.345)))
    _figures(left, rows, metric)
    _differences(right, rows, display_scale(metric))
    for axes in (left, right):
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)))
    left.set_yticklabels([plain(_name(r["shift"]), 30) for r in rows])
    right.set_yticklabels([])
    left.set_title(f"test {plain(metric)}, 95 % intervals")
    left.set_xlabel(axis_label(metric))
    right.set_title("difference to the tasks without a shift")
    right.set_xlabel(f"difference in {axis_label(metric)}; hollow: other episodes")
    drawn.legend(*left.get_legend_handles_labels(), loc="lower left", bbox_to_anchor=(0.18, 0.0), ncols=4)
    told = [f"{_name(r['shift'])}: {format_metric(metric, r['mean'], r['half'])}." for r in rows if "mean" in r]
    return Drawing("task_shift", f"Test {metric} under {len(rows) - 1} shifts of the tasks. " + " ".join(told), drawn)


def _figures(axes: Axes, rows: Sequence[dict[str, Any]], metric: str) -> None:
    scale = display_scale(metric)
    for kind, marker, colour, label in (
        ("chance", "|", GREY, "chance"),
        ("before", "x", COLOURS[1], "before adaptation"),
    ):
        found = [(scale * r[kind], y) for y, r in enumerate(rows) if r.get(kind) is not None]
        if found:
            axes.plot(*zip(*found, strict=True), marker, color=colour, label=label, markersize=6)
    shown = [(y, r) for y, r in enumerate(rows) if r.get("mean") is not None]
    x, half = (np.array([scale * (r[key] or 0) for _, r in shown]) for key in ("mean", "half"))
    broken = [(scale * r["median"], y) for y, r in enumerate(rows) if r.get("not_finite") and r["median"] is not None]
    if spans_much([x, np.array([m for m, _ in broken])]):
        axes.set_xscale("log")
    if shown:
        axes.errorbar(x, [y for y, _ in shown], xerr=half, fmt="o", color=COLOURS[0], capsize=3, label="mean of tasks")
    if broken:
        axes.plot(*zip(*broken, strict=True), "D", color=COLOURS[0], mfc="white", label="median, some tasks diverged")
    if rows[0].get("mean") is not None:
        axes.axvline(scale * rows[0]["mean"], color=COLOURS[0], linewidth=0.8, linestyle=(0, (3, 2)))
    for at, row in enumerate(rows):
        if "left_out" in row:
            text = plain(f"left out: {row['left_out']}", 76)
            axes.text(0.01, at, text, transform=axes.get_yaxis_transform(), va="center", fontsize=6.5, color=GREY)


def _differences(axes: Axes, rows: Sequence[dict[str, Any]], scale: float) -> None:
    axes.axvline(0, color=GREY, linewidth=0.9)
    for y, row in enumerate(rows):
        if row.get("not_finite"):
            text = f"diverged: {row['not_finite']} of {len(row['scores'])} tasks"
            shown = axes.text(0.99, y, text, transform=axes.get_yaxis_transform(), ha="right", va="center")
            shown.set(fontsize=6.5, color=COLOURS[1])
        if row.get("difference") is not None:
            half, face = scale * (row["half_difference"] or 0), COLOURS[0] if row["paired"] else "white"
            axes.errorbar([scale * row["difference"]], [y], xerr=[half], fmt="o", color=COLOURS[0], mfc=face, capsize=3)


def _name(shift: str) -> str:
    return "no shift" if shift == "none" else shift.replace("_", " ")
