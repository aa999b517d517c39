"""Figures that read in print and without colour vision: palette, panels, lines, and how a figure becomes bytes.

Colours are Okabe and Ito's without the yellow, which is lost on white paper; dashes and markers tell the same lines
apart in grey. Margins are fixed, in inches: automatic layouts draw everything twice. matplotlib's pyplot is not used.
"""

from __future__ import annotations

import base64
import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from metarun.storage.text import shorten

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.2, 1, 1.2)))
MARKERS = "osD^vP*X"
GREY = "#666666"
WIDTH, HEIGHT = 10.4, 2.5  # inches, of a figure and of a row of its panels with their margins
MARGINS = {"left": 0.68, "right": 0.14, "top": 0.36, "bottom": 0.52}
LEGEND_LINE, LEGEND_ENTRY = 0.2, 2.55  # inches: height of a line, width of an entry
FEW_STEPS = 20
MUCH = 50  # times the smallest value, beyond which a scale is logarithmic
NICE = [1, 2, 2.5, 5, 10]  # of which a multiple lies between ticks
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


Pair = tuple[float, float]


class Look(NamedTuple):
    """How one line differs from the others, in colour and in grey."""

    colour: str
    dash: Any
    marker: str


@dataclass(frozen=True)
class Drawing:
    """A figure, its file name without ending, and what it shows in words."""

    name: str
    alt: str
    figure: Figure


@contextlib.contextmanager
def style() -> Iterator[None]:
    """matplotlib's settings inside the block; names with signs that no font has are drawn without a warning."""
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        yield


def look(index: int) -> Look:
    """56 looks before one comes again."""
    return Look(COLOURS[index % 7], DASHES[index % 4], MARKERS[index % 8])


def plain(name: Any, limit: int = 40) -> str:
    """A name for a figure: no sign of it starts a formula or hides it from the legend."""
    text = shorten(name, limit).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def panels(count: int, columns: int = 3, legend: int = 0, height: float = HEIGHT) -> tuple[Figure, list[Axes]]:
    """`count` axes in rows of `columns`, and room below them for a legend of so many entries."""
    panel = WIDTH / columns, height
    rows, across = -(-count // columns), min(count, columns)
    size = panel[0] * across, height * rows + LEGEND_LINE * -(-legend // legend_columns(panel[0] * across))
    figure = Figure(figsize=size)
    axes = [figure.add_axes(_box(*divmod(at, columns), size, panel)) for at in range(count)]
    return figure, axes


def legend_columns(width: float) -> int:
    return max(1, int(width // LEGEND_ENTRY))


def _box(row: int, column: int, size: Pair, panel: Pair) -> tuple[float, float, float, float]:
    """Left, bottom, width and height of a panel's axes as shares of the figure."""
    left, bottom = panel[0] * column + MARGINS["left"], size[1] - panel[1] * (row + 1) + MARGINS["bottom"]
    inner = panel[0] - MARGINS["left"] - MARGINS["right"], panel[1] - MARGINS["top"] - MARGINS["bottom"]
    return left / size[0], bottom / size[1], inner[0] / size[0], inner[1] / size[1]


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """The legend that `panels` left room for."""
    columns = min(legend_columns(figure.get_figwidth()), max(1, len(labels)))
    figure.legend(handles, labels, loc="lower center", ncols=columns, bbox_to_anchor=(0.5, 0.0), handlelength=3.2)


def finish(axes: Axes, title: str, x: str, y: str, shown: Sequence[np.ndarray] = ()) -> None:
    """Title, labels, few ticks; a logarithmic scale where what is `shown` is nowhere negative and spans much."""
    axes.set_title(title, y=1.03)  # a place of its own spares matplotlib a search
    axes.set(xlabel=x, ylabel=y)
    if spans_much(shown):
        axes.set_yscale("log")
    elif (least := least_above_zero(shown)) is not None:
        axes.set_yscale("symlog", linthresh=least, linscale=0.4)
        axes.set_ylim(bottom=-least / 10)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=NICE))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(6, integer="steps" in x, steps=NICE))
        axes.xaxis.set_major_formatter(FuncFormatter(_tick))


def spans_much(shown: Sequence[np.ndarray]) -> bool:
    """Whether all finite values are positive and the largest is more than fifty times the smallest."""
    found = _finite(shown)
    return bool(len(found) > 1 and found.min() > 0 and found.max() > MUCH * found.min())


def least_above_zero(shown: Sequence[np.ndarray]) -> float | None:
    """A power of ten below most positive values, where there are zeros among them and a few are very much larger."""
    found = _finite(shown)
    positive = found[found > 0]
    if not len(positive) or found.min() < 0 or len(positive) == len(found) or found.max() < MUCH * np.median(positive):
        return None
    return float(10.0 ** np.floor(np.log10(np.quantile(positive, 0.1))))


def _finite(shown: Sequence[np.ndarray]) -> np.ndarray:
    found = np.concatenate([np.zeros(0), *(np.ravel(v) for v in shown)])
    return found[np.isfinite(found)]


def long_steps(axes: Axes, most: float) -> None:
    """Room for the first steps where there are many: distances on the axis are those of the roots."""
    if most > FEW_STEPS:
        axes.set_xscale("function", functions=(_root, _square))
        axes.set_xlim(-0.0015 * most, 1.05 * most)
        axes.set_xticks([0, *(tick for tick in one_two_five(1, most) if tick <= most)])
        axes.xaxis.set_major_formatter(FuncFormatter(_tick))


def _root(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.sqrt(np.abs(x))


def _square(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.square(x)


def wide_costs(axes: Axes, costs: Sequence[float]) -> None:
    """A logarithmic axis for costs that span much, with a place for 0 at its left."""
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
    """1, 2, 5, 10, 20 ... between the two, only 1, 10, 100 ... where these are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    heads = (1, 2, 5) if len(decades) <= 4 else (1,)
    return [head * 10.0**k for k in decades for head in heads if low / 1.3 <= head * 10.0**k <= high * 1.3]


def _tick(value: float, _: Any = None) -> str:
    if abs(value) >= 10_000 and value % 1000 == 0 and abs(value) < 1e7:
        return f"{value / 1000:g}k"
    text = f"{value:.1e}" if 0 < abs(value) < 9.9e-4 else f"{value:.4g}"
    return text.replace(".0e", "e").replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def svg_uri(figure: Figure) -> str:
    """The figure as a data: address. As an image, it can neither run anything nor clash with the page's ids."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def save_png(drawing: Drawing, folder: Path) -> Path:
    path = folder / f"{drawing.name}.png"
    drawing.figure.savefig(path, format="png", dpi=200)
    return path
