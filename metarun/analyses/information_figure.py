"""The figure of information: bounds of what is kept of a task against the size of its context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from metarun.report.figures.drawing import COLOURS, GREY, MARKERS, Drawing, finish, panels

REPRESENTATION = (("representation", "InfoNCE, from below"),)
LATENT = (
    ("latent_lower", "latent and data, from below"),
    ("latent_upper", "the same, from above"),
    ("latent_given_context", "beyond the context, from above"),
)
NEAR = 2  # the line of what can be told is drawn where a bound is above this part of it


def draw_information(rows: Sequence[dict[str, Any]], summary: dict[str, Any]) -> Drawing:
    """Representations left; right what is latent, where something is."""
    latent = "latent_lower" in rows[0]
    drawn, axes = panels(2 if latent else 1, columns=2, height=2.9)
    _bounds(axes[0], rows, REPRESENTATION, "most", "Representation and task")
    if latent:
        _bounds(axes[1], rows, LATENT, "latent_most", "Latent variable")
    return Drawing("information", f"Bounds of mutual information over {summary['tasks']} test tasks.", drawn)


def _bounds(
    axes: Axes, rows: Sequence[dict[str, Any]], names: Sequence[tuple[str, str]], most: str, title: str
) -> None:
    at = [row["shots"] for row in rows]
    for i, (name, words) in enumerate(names):
        values, halves = ([row[key] for row in rows] for key in (name, f"half_{name}"))
        axes.errorbar(at, values, yerr=halves, color=COLOURS[i], marker=MARKERS[i], capsize=2, label=words)
    if max(row[names[0][0]] for row in rows) > rows[0][most] / NEAR:  # else it would press the lines to the ground
        words = "most that bounds from below can tell"
        axes.axhline(rows[0][most], color=GREY, linewidth=0.8, linestyle="--", label=words)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    finish(axes, title, "shots of the context", "nats")
    if len(at) > 1:
        axes.set_xscale("log")
        axes.set_xticks(at, [str(k) for k in at])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.legend()
