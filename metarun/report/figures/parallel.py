"""Parallel coordinates: a vertical axis for each swept setting, and a line for each combination through its values.

In a grid many lines meet in one value: there they are spread a little, in the order of their figures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from metarun.report.compare.axes import Axis, Value, shown
from metarun.report.compare.combinations import Benchmark, Row
from metarun.report.figures.drawing import GREY, NICE, WIDTH, Drawing, one_two_five, plain
from metarun.report.figures.points import file_name
from metarun.report.figures.shade import Shade, place, shade_of
from metarun.storage.text import axis_label, number

MOST_AXES = 6
MOST_TYPED = 8  # values of an axis that are all labelled
HEIGHT = 3.3
SPREAD = 0.03  # of the axis, to each side of a value in which lines meet
NEAREST = 0.055  # of the axis: labels closer than this are left out
TICK = 0.008  # of the way between two axes
BEND = 0.4  # of the way between two axes, after which a line turns
LABEL = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}


def parallel(all_axes: Sequence[Axis], benchmark: Benchmark) -> Drawing:
    """The figure; `benchmark`'s rows have a value for each of the axes, of which the first few are drawn."""
    drawn = [axis.among([row.values[at] for row in benchmark.rows]) for at, axis in enumerate(all_axes[:MOST_AXES])]
    shade = shade_of(benchmark)
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_axes((0.075, 0.05, 0.85, 0.78))
    axes.set(xlim=(0, len(drawn)), ylim=(-0.06, 1.06))
    axes.axis("off")
    heights = [spread(positions(axis), [row.values[at] for row in benchmark.rows]) for at, axis in enumerate(drawn)]
    for at in reversed(range(len(benchmark.rows))):  # the best on top
        _line(axes, [column[at] for column in heights], benchmark.rows[at], shade, best=at == 0)
    for at, axis in enumerate(drawn):
        _axis(axes, at, axis.name, ticks_of(axis))
    scale = ticks(shade.low, shade.high, shade.logarithmic)
    _axis(axes, len(drawn), f"validation {axis_label(benchmark.metric)}", scale, to_right=True)
    figure.text(0.012, 0.955, plain(benchmark.name, 80), fontsize=9)
    return Drawing(f"sweep_{file_name(benchmark.name)}", _in_words(drawn, benchmark), figure)


def positions(axis: Axis) -> dict[Value, float]:
    """Between 0 and 1: numbers by their size, or its logarithm over more than a decade; words at even distances."""
    if len(axis.values) == 1:
        return {axis.values[0]: 0.5}
    if not axis.numeric:
        return {value: at / (len(axis.values) - 1) for at, value in enumerate(axis.values)}
    low, high = float(axis.values[0]), float(axis.values[-1])
    return {v: place(low, high, axis.logarithmic, float(v)) for v in axis.values}


def spread(places: dict[Value, float], values: Sequence[Value]) -> list[float]:
    """The height of each line on an axis: those that meet in a value side by side, in the order of the rows."""
    heights = sorted(places.values())
    gap = min((b - a for a, b in itertools.pairwise(heights)), default=1.0)
    width = min(SPREAD, gap / 3)
    met: dict[Value, list[int]] = {}
    for at, value in enumerate(values):
        met.setdefault(value, []).append(at)
    offsets = {row: o for rows in met.values() for row, o in zip(rows, _offsets(len(rows), width), strict=True)}
    return [places[value] + offsets[at] for at, value in enumerate(values)]


def _offsets(count: int, width: float) -> list[float]:
    return [float(v) for v in np.linspace(width, -width, count)] if count > 1 else [0.0]


def _line(axes: Axes, heights: Sequence[float], row: Row, shade: Shade, best: bool) -> None:
    known = math.isfinite(row.validation.mean)
    points = [*enumerate(heights), *([(len(heights), shade.place(row.validation.mean))] if known else [])]
    if len(points) < 2:
        return
    look: dict[str, Any] = {"edgecolor": GREY, "linestyle": (0, (3, 2)), "linewidth": 0.8}
    if known:
        look = {"edgecolor": shade.colour(row.validation.mean), "linewidth": 3.0 if best else 1.3, "alpha": 0.9}
    axes.add_patch(PathPatch(_curve(points), facecolor="none", clip_on=False, **look))


def _curve(points: Sequence[tuple[float, float]]) -> Path:
    """Level where it crosses an axis, so that lines that meet can be followed."""
    corners, codes = [points[0]], [Path.MOVETO]
    for (x, y), (to_x, to_y) in itertools.pairwise(points):
        corners += [(x + BEND * (to_x - x), y), (to_x - BEND * (to_x - x), to_y), (to_x, to_y)]
        codes += [Path.CURVE4] * 3
    return Path(corners, codes)


def _axis(axes: Axes, x: int, name: str, marks: dict[str, float], to_right: bool = False) -> None:
    """With its labels to the left, where lines end in them."""
    axes.plot([x, x], [-0.04, 1.04], color="black", linewidth=0.9, zorder=3, clip_on=False)
    axes.text(x, 1.1, plain(name, 26), ha="center", va="bottom", fontsize=8, fontweight="bold")
    sign, side = (1, "left") if to_right else (-1, "right")
    for text, y in apart(marks).items():
        axes.plot([x, x + sign * TICK], [y, y], color="black", linewidth=0.9, zorder=3, clip_on=False)
        axes.text(x + sign * 2 * TICK, y, plain(text), ha=side, va="center", fontsize=7.5, bbox=LABEL, zorder=4)


def apart(ticks: dict[str, float]) -> dict[str, float]:
    """The ticks that leave each other room, the highest and the lowest first."""
    ordered_ticks = sorted(ticks.items(), key=lambda tick: tick[1])
    kept: dict[str, float] = {}
    for text, y in [*ordered_ticks[:1], *ordered_ticks[-1:], *ordered_ticks[1:-1]]:
        if all(abs(y - other) >= NEAREST for other in kept.values()):
            kept[text] = y
    return kept


def ticks_of(axis: Axis) -> dict[str, float]:
    """Every value where they are few, or round numbers between the lowest and the highest."""
    if axis.numeric and len(axis.values) > MOST_TYPED:
        return ticks(float(axis.values[0]), float(axis.values[-1]), axis.logarithmic)
    return {shown(v, 14): y for v, y in positions(axis).items()}


def ticks(low: float, high: float, logarithmic: bool) -> dict[str, float]:
    """Both ends and round numbers between them, by their height."""
    inside = (
        one_two_five(low, high)
        if logarithmic
        else [float(v) for v in MaxNLocator(5, steps=NICE).tick_values(low, high)]
    )
    found = [low, high, *(v for v in inside if low < v < high)]
    return {number(v, 3): place(low, high, logarithmic, v) for v in found}


def _in_words(drawn: Sequence[Axis], benchmark: Benchmark) -> str:
    said = f"Combinations of {', '.join(axis.name for axis in drawn)} and their validation figure on {benchmark.name}."
    rows = [
        f"{', '.join(shown(v) for v in row.values[: len(drawn)])}: {number(row.validation.mean)}."
        for row in benchmark.rows[:20]
    ]
    return " ".join([said, "Best first.", *rows])
