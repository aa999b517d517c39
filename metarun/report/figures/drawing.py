"""Figures that read in print and without colour vision: palette, panels, curves, scales, image files.

Colours are Okabe and Ito's without the yellow, which is lost on white paper; dashes and markers tell the same lines
apart in grey. Margins are fixed, in inches: automatic layouts draw everything twice. matplotlib's pyplot is not used.
"""

from __future__ import annotations

import base64
import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from metarun.storage.text import number, shorten

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.2, 1, 1.2)))
MARKERS = "osD^vP*X"
GREY = "#666666"
WIDTH, HEIGHT = 10.4, 2.5  # inches, of a figure and of a row of its panels with their margins
MARGINS = {"left": 0.68, "right": 0.14, "top": 0.36, "bottom": 0.52}
LEGEND_LINE, LEGEND_ENTRY = 0.2, 2.55  # inches: height of a line, width of an entry
FEW_STEPS = 20
LOG_RANGE = 50  # times the smallest value, beyond which a scale is logarithmic
TICK_STEPS = [1, 2, 2.5, 5, 10]
MAX_POINTS = 300  # that are drawn of one curve
SMOOTHING = 15  # the window of a smoothed curve is its number of records divided by this
MAX_MARKED = 40  # points of a curve up to which each has a marker
MAX_KEYED = 9  # lines that a legend names
SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "svg.fonttype": "path",
    "svg.hashsalt": "metarun",  # the same figure gives the same bytes
    "path.simplify_threshold": 0.5,
}


Curve = tuple[np.ndarray, np.ndarray]
"""x and y, [R] each."""


class Look(NamedTuple):
    """Colour, dash and marker: how one line differs from the others, in colour and in grey."""

    colour: str
    dash: Any
    marker: str


@dataclass(frozen=True)
class Drawing:
    """A figure, its file name without ending, and a text in place of it."""

    name: str
    alt: str
    figure: Figure
    charts: Sequence[Any] = ()  # of chart.py: its panels, for a page that draws them again


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Use the report's settings of matplotlib inside the block. Characters without a glyph are no reason to warn."""
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        yield


def look(index: int) -> Look:
    """Return one of 56 looks."""
    return Look(COLOURS[index % 7], DASHES[index % 4], MARKERS[index % 8])


def plain(name: Any, limit: int = 40) -> str:
    """Return a name for a figure: no character of it starts a formula or hides it from the legend."""
    text = shorten(name, limit).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def panels(count: int, columns: int = 3, legend: int = 0, height: float = HEIGHT) -> tuple[Figure, list[Axes]]:
    """Return a figure of `count` axes in rows of `columns`, with room below for a legend of `legend` entries."""
    panel_width, rows, across = WIDTH / columns, -(-count // columns), min(count, columns)
    width = panel_width * across
    total = height * rows + LEGEND_LINE * -(-legend // _legend_columns(width))
    figure, axes = Figure(figsize=(width, total)), []
    for at in range(count):
        row, column = divmod(at, columns)
        left, bottom = panel_width * column + MARGINS["left"], total - height * (row + 1) + MARGINS["bottom"]
        inner = panel_width - MARGINS["left"] - MARGINS["right"], height - MARGINS["top"] - MARGINS["bottom"]
        axes.append(figure.add_axes((left / width, bottom / total, inner[0] / width, inner[1] / total)))
    return figure, axes


def _legend_columns(width: float) -> int:
    return max(1, int(width // LEGEND_ENTRY))


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Add the legend that `panels` left room for."""
    columns = min(_legend_columns(figure.get_figwidth()), max(1, len(labels)))
    figure.legend(handles, labels, loc="lower center", ncols=columns, bbox_to_anchor=(0.5, 0.0), handlelength=3.2)


def finish(axes: Axes, title: str, x: str, y: str, shown: Sequence[np.ndarray] = ()) -> None:
    """Set title, labels and ticks; a logarithmic scale if the `shown` values are positive and span a wide range."""
    axes.set_title(title, y=1.03)  # a fixed position spares matplotlib a search
    axes.set(xlabel=x, ylabel=y)
    if needs_log_scale(shown):
        axes.set_yscale("log")
    elif (threshold := _linear_threshold(shown)) is not None:
        axes.set_yscale("symlog", linthresh=threshold, linscale=0.4)
        axes.set_ylim(bottom=-threshold / 10)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(6, integer="steps" in x, steps=TICK_STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(_tick))


def needs_log_scale(shown: Sequence[np.ndarray]) -> bool:
    """Whether all finite values are positive and the largest is more than fifty times the smallest."""
    found = _finite(shown)
    return bool(len(found) > 1 and found.min() > 0 and found.max() > LOG_RANGE * found.min())


def _linear_threshold(shown: Sequence[np.ndarray]) -> float | None:
    """A power of ten below most positive values, if there are zeros among them and a few are very much larger."""
    found = _finite(shown)
    positive = found[found > 0]
    if not len(positive) or len(positive) == len(found) or found.min() < 0:
        return None
    if found.max() < LOG_RANGE * np.median(positive):
        return None
    return float(10.0 ** np.floor(np.log10(np.quantile(positive, 0.1))))


def _finite(shown: Sequence[np.ndarray]) -> np.ndarray:
    found = np.concatenate([np.zeros(0), *(np.ravel(v) for v in shown)])
    return found[np.isfinite(found)]


def use_root_scale(axes: Axes, most: float) -> None:
    """Leave room for the first steps if there are many: distances on the axis are those of the square roots."""
    if most > FEW_STEPS:
        scale = lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * np.square(x)
        axes.set_xscale("function", functions=scale)
        axes.set_xlim(-0.0015 * most, 1.05 * most)
        axes.set_xticks([0, *(tick for tick in one_two_five(1, most) if tick <= most)])
        axes.xaxis.set_major_formatter(FuncFormatter(_tick))


def scale_costs(axes: Axes, costs: Sequence[float]) -> None:
    """Use a logarithmic axis for costs that span a wide range, with room for 0 at its left."""
    positive = [c for c in costs if c > 0]
    if len(positive) < 2 or max(positive) < 3 * min(positive):
        return
    low, high = min(positive), max(positive)
    if min(costs) > 0:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.3, high * 1.3)
    else:
        axes.set_xscale("symlog", linthresh=low / 2, linscale=0.3)
        axes.set_xlim(-low / 8, high * 1.3)
    axes.set_xticks([*([0] if min(costs) <= 0 else []), *one_two_five(low, high)])
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())


def one_two_five(low: float, high: float) -> list[float]:
    """Return 1, 2, 5, 10, 20 ... between the two, or only 1, 10, 100 ... if these are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    heads = (1, 2, 5) if len(decades) <= 4 else (1,)
    return [head * 10.0**k for k in decades for head in heads if low / 1.3 <= head * 10.0**k <= high * 1.3]


def _tick(value: float, _: Any = None) -> str:
    if abs(value) >= 10_000 and value % 1000 == 0 and abs(value) < 1e7:
        return f"{value / 1000:g}k"
    text = f"{value:.1e}" if 0 < abs(value) < 9.9e-4 else f"{value:.4g}"
    return text.replace(".0e", "e").replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def thin(x: np.ndarray, y: np.ndarray) -> Curve:
    """Return at most `MAX_POINTS` points, each the mean of as many consecutive ones; the last may be of fewer."""
    each = -(-len(x) // MAX_POINTS)
    if each <= 1:
        return x, y
    edges = range(0, len(x), each)
    return np.array([x[at : at + each].mean() for at in edges]), np.array([y[at : at + each].mean() for at in edges])


def running_median(y: np.ndarray, window: int) -> np.ndarray:
    """Return the median of the finite values at most window // 2 places away, NaN if there is none.

    Unlike a mean, it ignores spikes.
    """
    if not len(y):
        return y
    side = window // 2
    padded = np.pad(np.where(np.isfinite(y), y, np.nan), side, constant_values=np.nan)
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * side + 1)
    empty = np.isnan(around).all(1)
    return np.where(empty, np.nan, np.nanmedian(np.where(empty[:, None], 0.0, around), axis=1))


def smooth(y: np.ndarray, window: int) -> np.ndarray:
    """Return the running median, its corners rounded by a running mean of the same width."""
    middle, side = running_median(y, window), window // 2
    if not len(y) or not side:
        return middle
    kernel, finite = np.ones(2 * side + 1), np.isfinite(middle)
    total = np.convolve(np.where(finite, middle, 0.0), kernel)[side : side + len(y)]
    known = np.convolve(finite.astype(float), kernel)[side : side + len(y)]
    return np.where(finite, total / np.maximum(known, 1), np.nan)


def plot_noisy(axes: Axes, x: np.ndarray, y: np.ndarray, look: Look, label: str | None = None) -> None:
    """Plot every record thin, the smoothed running median thick, non-finite records as crosses at the foot."""
    window = len(y) // SMOOTHING
    if window < 2:
        axes.plot(x, y, color=look.colour, linestyle=look.dash, marker=look.marker, label=label)
    else:
        axes.plot(*thin(x, y), color=look.colour, linewidth=0.6, alpha=0.35)
        axes.plot(*thin(x, smooth(y, window)), color=look.colour, linestyle=look.dash, label=label)
    mark_nonfinite(axes, x, y)


def mark_nonfinite(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    bad = x[~np.isfinite(y)]
    if len(bad):
        foot, transform = np.full(len(bad), 0.03), axes.get_xaxis_transform()
        axes.plot(bad, foot, "x", color="#D55E00", transform=transform, label="not finite", clip_on=False)


def plot_band(
    axes: Axes, x: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray, look: Look, label: str | None = None
) -> None:
    """Plot a line in its band, with a marker for each point if they are few."""
    marker = look.marker if len(x) <= MAX_MARKED else ""
    axes.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0)
    axes.plot(x, y, color=look.colour, linestyle=look.dash, marker=marker, label=label)
    mark_nonfinite(axes, x, y)


def plot_family(axes: Axes, curves: Mapping[str, Curve], what: str) -> None:
    """Plot lines that have an order (layers, steps), dark to light; of many lines the legend names the ends."""
    for at, ((name, (x, y)), colour) in enumerate(zip(curves.items(), shades(len(curves)), strict=True)):
        shown = len(curves) <= MAX_KEYED or at in (0, len(curves) - 1)
        points = thin(x, smooth(y, max(1, len(y) // SMOOTHING)))
        marker, label = "." if len(y) == 1 else "", plain(name, 24) if shown else None
        axes.plot(*points, color=colour, linestyle=DASHES[at % 4], linewidth=1.2, marker=marker, label=label)
    if len(curves) > MAX_KEYED:
        axes.plot([], [], " ", label=f"{len(curves)} {what}, dark to light")


def shades(count: int) -> list[Any]:
    """Return colours from dark to light, ordered by lightness alone; the palest part of the scale is left out."""
    return list(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, count)))


def mark_x(axes: Axes, x: float, text: str, at: int = 0) -> None:
    """Draw a vertical line that the legend explains."""
    axes.axvline(x, color=GREY, linewidth=1.0, linestyle=(":", "--")[at % 2], label=text)


def describe_curve(what: str, curve: Curve) -> str:
    """Describe a curve in words, for readers who cannot see it."""
    x, y = curve
    good = np.isfinite(y)
    if not good.any():
        return f"{what}: no finite value."
    ends = [f"{number(float(y[good][at]))} at {number(float(x[good][at]))}" for at in (0, -1)]
    return f"{what}: {', '.join(ends)}."


def svg_uri(figure: Figure) -> str:
    """Return the figure as a data: address. An image can neither run anything nor clash with the page's ids."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
