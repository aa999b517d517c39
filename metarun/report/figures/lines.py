"""Curves on axes: long noisy ones with their median, means with intervals, families of lines with an order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from metarun.report.figures.drawing import DASHES, GREY, Look, plain

MOST_POINTS = 300  # that are drawn of one curve
SMOOTHING = 15  # as a share of the records: their number by this
KEYED = 9  # lines that a legend names


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MOST_POINTS` points, each the mean of as many consecutive ones; the last group may be smaller."""
    each = -(-len(x) // MOST_POINTS)
    if each <= 1:
        return x, y
    edges = range(0, len(x), each)
    return np.array([x[at : at + each].mean() for at in edges]), np.array([y[at : at + each].mean() for at in edges])


def running_median(y: np.ndarray, window: int) -> np.ndarray:
    """The median of the finite values at most window // 2 places away: no spike moves it. NaN where there is none."""
    if not len(y):
        return y
    side = window // 2
    padded = np.pad(np.where(np.isfinite(y), y, np.nan), side, constant_values=np.nan)
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * side + 1)
    empty = np.isnan(around).all(1)
    return np.where(empty, np.nan, np.nanmedian(np.where(empty[:, None], 0.0, around), axis=1))


def smoothed(y: np.ndarray, window: int) -> np.ndarray:
    """The running median, its corners rounded by a running mean of the same width."""
    middle, side = running_median(y, window), window // 2
    if not len(y) or not side:
        return middle
    kernel, finite = np.ones(2 * side + 1), np.isfinite(middle)
    total = np.convolve(np.where(finite, middle, 0.0), kernel)[side : side + len(y)]
    number = np.convolve(finite.astype(float), kernel)[side : side + len(y)]
    return np.where(finite, total / np.maximum(number, 1), np.nan)


def noisy(axes: Axes, x: np.ndarray, y: np.ndarray, look: Look, label: str | None = None) -> None:
    """Every record thin, their smoothed running median thick; records that are not finite as crosses at the foot."""
    window = len(y) // SMOOTHING
    if window < 2:
        axes.plot(x, y, color=look.colour, linestyle=look.dash, marker=look.marker, label=label)
    else:
        axes.plot(*thinned(x, y), color=look.colour, linewidth=0.6, alpha=0.35)
        axes.plot(*thinned(x, smoothed(y, window)), color=look.colour, linestyle=look.dash, label=label)
    not_finite(axes, x, y)


def not_finite(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    bad = x[~np.isfinite(y)]
    if len(bad):
        foot = np.full(len(bad), 0.03)
        transform = axes.get_xaxis_transform()
        axes.plot(bad, foot, "x", color="#D55E00", transform=transform, label="not finite", clip_on=False)


def with_band(
    axes: Axes, x: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray, look: Look, label: str | None = None
) -> None:
    """A line in its band; a marker for each point as long as they can be told apart."""
    marker = look.marker if len(x) <= 40 else ""
    axes.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0)
    axes.plot(x, y, color=look.colour, linestyle=look.dash, marker=marker, label=label)
    not_finite(axes, x, y)


def family(axes: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], order: str) -> None:
    """Lines that have an order (layers, steps), dark to light; beyond a few the legend names the ends."""
    colours = shades(len(curves))
    for at, ((name, (x, y)), colour) in enumerate(zip(curves.items(), colours, strict=True)):
        shown = len(curves) <= KEYED or at in (0, len(curves) - 1)
        window = max(1, len(y) // SMOOTHING)
        marker = "." if len(y) == 1 else ""
        smooth = thinned(x, smoothed(y, window))
        label = plain(name, 24) if shown else None
        axes.plot(*smooth, color=colour, linestyle=DASHES[at % 4], linewidth=1.2, marker=marker, label=label)
    if len(curves) > KEYED:
        axes.plot([], [], " ", label=f"{len(curves)} {order}, dark to light")


def shades(count: int) -> list[Any]:
    """Dark to light, in a scale whose lightness alone gives the order; its palest part is left out."""
    scale = matplotlib.colormaps["viridis"]
    return [scale(float(v)) for v in np.linspace(0.0, 0.85, max(count, 1))][:count]


def mark(axes: Axes, x: float, text: str, at: int = 0) -> None:
    """A vertical line that the legend explains."""
    axes.axvline(x, color=GREY, linewidth=1.0, linestyle=(":", "--")[at % 2], label=text)


def reference(axes: Axes, y: float, text: str) -> None:
    """A horizontal line that values are to be held against."""
    axes.axhline(y, color=GREY, linewidth=0.9, linestyle=(0, (2, 2)), label=text)


def drawn(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """The values of all curves, for the choice of a scale."""
    return [y for _, y in curves]
