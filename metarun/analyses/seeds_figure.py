"""The figure of seeds: each seed's figure, what the spread of scores comes from, and the learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from metarun.report.figures.drawing import COLOURS, GREY, Drawing, finish, look, panels
from metarun.storage.text import axis_label, display_scale, format_metric

Rows = Sequence[dict[str, Any]]
PARTS = (("seed", COLOURS[1]), ("task", COLOURS[0]), ("residual", COLOURS[4]))


def draw_seeds(rows: Rows, summary: dict[str, Any]) -> Drawing:
    metric = summary["metric"]
    sound = [r for r in rows if not r["diverged"]]
    drawn, (left, middle, right) = panels(3, height=2.9)
    if sound:
        _figures(left, sound, summary, display_scale(metric))
        _learning(right, sound, summary, display_scale(metric))
    if summary.get("components"):
        _components(middle, summary["components"])
    finish(left, "Test, 95 % intervals", "seed", axis_label(metric))
    left.set_xticks(range(len(sound)), [str(r["seed"]) for r in sound])
    middle.set_title("Where one score's variance is from", y=1.03)
    middle.set_xlabel("share of the variance, %")
    shown = np.array([v for r in sound for v in r["validations"]["values"] if v is not None], dtype=float)
    finish(right, "Validation, a line a seed", "outer steps", axis_label(metric), [display_scale(metric) * shown])
    said = format_metric(metric, summary.get("mean"), summary.get("half"))
    return Drawing("seeds", f"Test {metric} of {len(sound)} seeds: {said}; {summary['diverged']} diverged.", drawn)


def _figures(axes: Axes, rows: Rows, summary: dict[str, Any], scale: float) -> None:
    """Bars of single seeds are over test tasks, the band is over seeds."""
    means, halves = ([scale * (r[k] or 0) for r in rows] for k in ("mean", "ci95"))
    axes.errorbar(
        range(len(rows)), means, yerr=halves, fmt="o", color=COLOURS[0], capsize=3, label="a seed, over tasks"
    )
    mean, half = (scale * (summary[k] or 0) for k in ("mean", "half"))
    axes.axhline(mean, color=COLOURS[1], linewidth=1)
    axes.axhspan(mean - half, mean + half, color=COLOURS[1], alpha=0.18, linewidth=0, label="mean, over seeds")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
    axes.legend(loc="upper left", ncols=2)


def _components(axes: Axes, found: dict[str, Any]) -> None:
    total = sum(found[name] for name, _ in PARTS) or 1.0
    for y, (name, colour) in enumerate(PARTS):
        share = 100 * found[name] / total
        axes.barh(y, share, color=colour, height=0.6)
        axes.text(share, y, f" {share:.3g} %", va="center")
    axes.set_yticks(range(len(PARTS)), [name for name, _ in PARTS])
    axes.set_ylim(len(PARTS) - 0.5, -0.5)
    axes.set_xlim(0, 118)


def _learning(axes: Axes, rows: Rows, summary: dict[str, Any], scale: float) -> None:
    for at, row in enumerate(rows):
        values = scale * np.array(row["validations"]["values"], dtype=float)
        shown = look(at)
        axes.plot(row["validations"]["steps"], values, color=shown.colour, linestyle=shown.dash, marker=shown.marker)
    if summary["convergence"]:
        axes.axhline(scale * summary["convergence"]["threshold"], color=GREY, linewidth=0.8, label="threshold")
        axes.legend()
