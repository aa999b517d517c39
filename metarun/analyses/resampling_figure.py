"""The figure of support_resampling: each task's scores over its support sets, and the two standard deviations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarun.report.figures.drawing import COLOURS, GREY, Drawing, finish
from metarun.storage.text import axis_label, display_scale, format_metric, higher_is_better


def draw_resampling(rows: Sequence[dict[str, Any]], summary: dict[str, Any]) -> Drawing:
    """Tasks sorted by their mean; beside them, what varies more."""
    metric, drawn = summary["metric"], Figure(figsize=(9.2, 2.9))
    left, right = (drawn.add_axes((x, 0.17, w, 0.7)) for x, w in ((0.075, 0.6), (0.8, 0.18)))
    finite = sorted((r for r in rows if r["sd"] is not None), key=lambda r: r["mean"])
    scores = display_scale(metric) * np.array([r["scores"] for r in finite]).reshape(len(finite), -1)
    _tasks(left, scores, "lower right" if higher_is_better(metric) else "upper left")
    title = f"{summary['draws']} support sets of each task, the same queries"
    finish(left, title, "test tasks, sorted by their mean", axis_label(metric), [scores])
    if "sd_support" in summary:
        _bars(right, summary, metric)
    alt = f"Test {metric} of {len(finite)} tasks over {summary['draws']} support sets each. {summary['message']}"
    return Drawing("support_resampling", alt, drawn)


def _tasks(axes: Axes, scores: np.ndarray, corner: Any) -> None:
    """A line from the worst draw to the best, a dot at the mean."""
    at = np.arange(len(scores))
    if not len(scores):
        return
    axes.vlines(at, scores.min(1), scores.max(1), color=COLOURS[5], linewidth=1.4, label="worst to best support set")
    axes.plot(at, scores.mean(1), "o", color=COLOURS[0], markersize=2.6, label="mean of the task")
    axes.legend(loc=corner)


def _bars(axes: Axes, summary: dict[str, Any], metric: str) -> None:
    scale = display_scale(metric)
    parts = {"tasks": summary["sd_tasks"], "support\nsets": summary["sd_support"]}
    axes.bar(list(parts), [scale * v for v in parts.values()], color=[COLOURS[0], COLOURS[5]], width=0.6)
    for at, value in enumerate(parts.values()):
        axes.annotate(
            format_metric(metric, value, unit=False), (at, scale * value), xytext=(0, 2), textcoords="offset points",
            ha="center", fontsize=7, color=GREY,
        )  # fmt: skip
    axes.set_title("standard deviation")
    axes.set_ylabel(axis_label(metric))
    axes.grid(False, axis="x")
    axes.set_axisbelow(True)
    axes.set_ylim(0, 1.15 * scale * max(parts.values()) or 1)
