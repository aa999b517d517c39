"""Figures that read in print and without colour vision: palette, panels, lines, and how a figure becomes bytes.

Colours are Okabe and Ito's without the yellow, which is lost on white paper; dashes and markers tell the same lines
apart in grey. Margins are fixed, in inches: automatic layouts draw everything twice. matplotlib's pyplot is not used.
"""

from __future__ import annotations

import base64
import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from metarun.report.text import short

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.2, 1, 1.2)))
MARKERS = "osD^vP*X"
GREY = "#666666"
WIDTH, HEIGHT = 10.4, 2.5  # inches, of a figure and of a row of its panels with their margins
MARGINS = {"left": 0.68, "right": 0.14, "top": 0.36, "bottom": 0.52}
LEGEND_LINE = 0.2  # inches
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
    text = short(name, limit).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def panels(count: int, columns: int = 3, legend_lines: int = 0, height: float = HEIGHT) -> tuple[Figure, list[Axes]]:
    """`count` axes in rows, room for a legend of so many lines below them."""
    rows = -(-count // columns)
    size = WIDTH, height * rows + LEGEND_LINE * legend_lines
    figure = Figure(figsize=size)
    axes = [figure.add_axes(_box(*divmod(at, columns), size, (WIDTH / columns, height))) for at in range(count)]
    return figure, axes


def _box(row: int, column: int, size: Pair, panel: Pair) -> tuple[float, float, float, float]:
    """Left, bottom, width and height of a panel's axes as shares of the figure."""
    left, bottom = panel[0] * column + MARGINS["left"], size[1] - panel[1] * (row + 1) + MARGINS["bottom"]
    inner = panel[0] - MARGINS["left"] - MARGINS["right"], panel[1] - MARGINS["top"] - MARGINS["bottom"]
    return left / size[0], bottom / size[1], inner[0] / size[0], inner[1] / size[1]


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int) -> None:
    figure.legend(handles, labels, loc="lower center", ncols=columns, bbox_to_anchor=(0.5, 0.0), handlelength=3.2)


def finish(axes: Axes, title: str, x: str, y: str, shown: Sequence[np.ndarray] = ()) -> None:
    """Title, labels, few ticks; a logarithmic scale where what is `shown` is positive and spans much."""
    axes.set_title(title)
    axes.set(xlabel=x, ylabel=y)
    if spans_much(shown):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(5, integer="steps" in x))
        axes.xaxis.set_major_formatter(FuncFormatter(_tick))


def spans_much(shown: Sequence[np.ndarray]) -> bool:
    """Whether all finite values are positive and the largest is more than fifty times the smallest."""
    found = np.concatenate([np.ravel(v) for v in shown]) if len(shown) else np.zeros(0)
    found = found[np.isfinite(found)]
    return bool(len(found) > 1 and found.min() > 0 and found.max() > 50 * found.min())


def _tick(value: float, _: Any = None) -> str:
    if abs(value) >= 10_000 and value % 1000 == 0 and abs(value) < 1e7:
        return f"{value / 1000:g}k"
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e")


def svg_uri(figure: Figure) -> str:
    """The figure as a data: address. As an image, it can neither run anything nor clash with the page's ids."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def save_png(drawing: Drawing, folder: Path) -> Path:
    path = folder / f"{drawing.name}.png"
    drawing.figure.savefig(path, format="png", dpi=200)
    return path
