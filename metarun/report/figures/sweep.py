"""Figures of a sweep: parallel coordinates of the swept settings, and heat maps of each pair of settings.

Everything is coloured by validation, dark the best, on one scale for each benchmark. In a grid many lines meet in one
value: there they are spread a little, best first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from metarun.report.compare.sweep import Axis, Benchmark, Row, Sweep, Value, format_value, spans_decade
from metarun.report.figures.comparison import file_name
from metarun.report.figures.drawing import GREY, TICK_STEPS, WIDTH, Drawing, one_two_five, panels, plain
from metarun.storage.text import axis_label, higher_is_better, number

MAX_BENCHMARKS, MAX_MAPS = 3, 6
MAX_CELLS = 12  # values of an axis, beyond which a heat map is not drawn
MIN_FILLED = 0.3  # share of the cells that have a value
PALEST = 0.9  # of the colours: beyond it, lines are lost on white paper
MAX_AXES = 6
MAX_LABELS = 8  # values of an axis that are all labelled
HEIGHT = 3.3
SPREAD = 0.03  # of the axis, to each side of a value in which lines meet
NEAREST = 0.055  # of the axis: labels closer than this are left out
TICK = 0.008  # of the way between two axes
BEND = 0.4  # of the way between two axes, after which a line turns
LABEL = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
PARALLEL = (
    "Each line is a combination of swept settings, from setting to setting to its validation metric (mean over seeds) "
    "at the right; dark is better, the thick line the best. Grey, dashed: no run completed."
)
HEAT = (
    "Cells: the validation metric, a mean over seeds and over all other settings, of the combinations that have one; "
    "dark is better, hatched: none. Where runs diverged or failed, their number is below the mean, which omits them."
)


class Shade(NamedTuple):
    """The colours of a range of metrics."""

    low: float
    high: float
    logarithmic: bool
    best_is_high: bool

    @staticmethod
    def of(benchmark: Benchmark) -> Shade:
        means = [row.validation.mean for row in benchmark.rows if row.validated]
        low, high = min(means), max(means)
        return Shade(low, high, spans_decade(low, high), higher_is_better(benchmark.metric))

    def place(self, value: float) -> float:
        return interpolate(self.low, self.high, self.logarithmic, value)

    def colour(self, value: float) -> Any:
        return matplotlib.colormaps["viridis"](PALEST * self._lightness(value))

    def ink(self, value: float) -> str:
        """The colour of text on it."""
        return "white" if self._lightness(value) < 0.65 else "black"

    def _lightness(self, value: float) -> float:
        return 1 - self.place(value) if self.best_is_high else self.place(value)


def interpolate(low: float, high: float, logarithmic: bool, value: float) -> float:
    """Return 0 at the low end, 1 at the high one; one half if both are the same."""
    low, high, value = (math.log(v) if logarithmic else v for v in (low, high, value))
    return (value - low) / (high - low) if high > low else 0.5


def draw_sweep(sweep: Sweep) -> tuple[tuple[Drawing, ...], tuple[str, ...]]:
    """Return the figures of the benchmarks with two validated combinations or more, and texts to go with them."""
    drawn = [b for b in sweep.benchmarks if sum(row.validated for row in b.rows) > 1]
    drawings, texts = [], [PARALLEL] if drawn else []
    for benchmark in drawn[:MAX_BENCHMARKS]:
        varied = sweep.varied_axes(benchmark)
        drawings.append(draw_parallel(sweep, benchmark, varied[:MAX_AXES]))
        if len(varied) > MAX_AXES:
            texts.append(f"Left out of the lines: {', '.join(sweep.axes[at].name for at in varied[MAX_AXES:])}.")
        maps, left_out = draw_heat_maps(sweep, benchmark, varied)
        drawings += [maps] if maps else []
        texts += [HEAT] if maps and HEAT not in texts else []
        texts += [left_out] if left_out else []
    rest = [b.name for b in drawn[MAX_BENCHMARKS:]]
    return tuple(drawings), (*texts, *([f"Not drawn: {', '.join(rest)}."] if rest else []))


def draw_parallel(sweep: Sweep, benchmark: Benchmark, which: Sequence[int]) -> Drawing:
    """Draw a vertical axis for each of these settings, and a line for each combination through its values."""
    columns = [[row.values[at] for row in benchmark.rows] for at in which]
    drawn = [sweep.axes[at].restrict(column) for at, column in zip(which, columns, strict=True)]
    shade = Shade.of(benchmark)
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_axes((0.075, 0.05, 0.85, 0.78))
    axes.set(xlim=(0, len(drawn)), ylim=(-0.06, 1.06))
    axes.axis("off")
    heights = [spread(positions(axis), column) for axis, column in zip(drawn, columns, strict=True)]
    for at in reversed(range(len(benchmark.rows))):  # the best on top
        _draw_line(axes, [column[at] for column in heights], benchmark.rows[at], shade, best=at == 0)
    for at, axis in enumerate(drawn):
        ticks = {format_value(v, 14): y for v, y in positions(axis).items()}
        if axis.numeric and len(axis.values) > MAX_LABELS:
            ticks = _round_ticks(float(axis.values[0]), float(axis.values[-1]), axis.logarithmic)
        _draw_axis(axes, at, axis.name, ticks)
    scale = _round_ticks(shade.low, shade.high, shade.logarithmic)
    _draw_axis(axes, len(drawn), f"validation {axis_label(benchmark.metric)}", scale, to_right=True)
    figure.text(0.012, 0.955, plain(benchmark.name, 80), fontsize=9)
    names = ", ".join(axis.name for axis in drawn)
    texts = [f"Combinations of {names} and their validation metric on {benchmark.name}. Best first."]
    for row in benchmark.rows[:20]:
        texts.append(f"{', '.join(format_value(row.values[at]) for at in which)}: {number(row.validation.mean)}.")
    return Drawing(f"sweep_{file_name(benchmark.name)}", " ".join(texts), figure)


def positions(axis: Axis) -> dict[Value, float]:
    """Return each of several values, between 0 and 1: numbers by size, or its logarithm over a decade; words evenly."""
    if not axis.numeric:
        return {value: at / (len(axis.values) - 1) for at, value in enumerate(axis.values)}
    low, high = float(axis.values[0]), float(axis.values[-1])
    return {v: interpolate(low, high, axis.logarithmic, float(v)) for v in axis.values}


def spread(places: dict[Value, float], values: Sequence[Value]) -> list[float]:
    """Return the height of each line on an axis: those that meet in a value side by side, in the order of the rows."""
    gap = min((b - a for a, b in itertools.pairwise(sorted(places.values()))), default=1.0)
    width = min(SPREAD, gap / 3)
    meeting: dict[Value, list[int]] = {}
    for at, value in enumerate(values):
        meeting.setdefault(value, []).append(at)
    heights = [places[value] for value in values]
    for lines in meeting.values():
        offsets = np.linspace(width, -width, len(lines)) if len(lines) > 1 else [0.0]
        for at, offset in zip(lines, offsets, strict=True):
            heights[at] += float(offset)
    return heights


def _draw_line(axes: Axes, heights: Sequence[float], row: Row, shade: Shade, best: bool) -> None:
    """Level where it crosses an axis, so that lines that meet can be followed."""
    points: list[tuple[float, float]] = [
        *enumerate(heights),
        *([(len(heights), shade.place(row.validation.mean))] if row.validated else []),
    ]
    if len(points) < 2:
        return
    style: dict[str, Any] = {"edgecolor": GREY, "linestyle": (0, (3, 2)), "linewidth": 0.8}
    if row.validated:
        style = {"edgecolor": shade.colour(row.validation.mean), "linewidth": 3.0 if best else 1.3, "alpha": 0.9}
    corners, codes = [points[0]], [Path.MOVETO]
    for (x, y), (to_x, to_y) in itertools.pairwise(points):
        corners += [(x + BEND * (to_x - x), y), (to_x - BEND * (to_x - x), to_y), (to_x, to_y)]
        codes += [Path.CURVE4] * 3
    axes.add_patch(PathPatch(Path(corners, codes), facecolor="none", clip_on=False, **style))


def _draw_axis(axes: Axes, x: int, name: str, ticks: dict[str, float], to_right: bool = False) -> None:
    """With its labels to the left, where lines end in them."""
    axes.plot([x, x], [-0.04, 1.04], color="black", linewidth=0.9, zorder=3, clip_on=False)
    axes.text(x, 1.1, plain(name, 26), ha="center", va="bottom", fontsize=8, fontweight="bold")
    sign, side = (1, "left") if to_right else (-1, "right")
    ordered = sorted(ticks.items(), key=lambda tick: tick[1])
    kept: dict[str, float] = {}  # the ticks that leave each other room, the lowest and the highest first
    for text, y in [*ordered[:1], *ordered[-1:], *ordered[1:-1]]:
        if all(abs(y - other) >= NEAREST for other in kept.values()):
            kept[text] = y
    for text, y in kept.items():
        axes.plot([x, x + sign * TICK], [y, y], color="black", linewidth=0.9, zorder=3, clip_on=False)
        axes.text(x + sign * 2 * TICK, y, plain(text), ha=side, va="center", fontsize=7.5, bbox=LABEL, zorder=4)


def _round_ticks(low: float, high: float, logarithmic: bool) -> dict[str, float]:
    """Both ends and round numbers between them, by their height."""
    inside = one_two_five(low, high) if logarithmic else MaxNLocator(5, steps=TICK_STEPS).tick_values(low, high)
    found = [low, high, *(float(v) for v in inside if low < v < high)]
    return {number(v, 3): interpolate(low, high, logarithmic, v) for v in found}


def draw_heat_maps(sweep: Sweep, benchmark: Benchmark, varied: Sequence[int]) -> tuple[Drawing | None, str]:
    """Draw a map for each pair of settings with few values; the text names the pairs that are left out."""
    pairs = list(itertools.combinations(varied, 2))
    drawn = [pair for pair in pairs if _fits_a_map(benchmark, pair)][:MAX_MAPS]
    names = {(a, b): f"{sweep.axes[a].name} by {sweep.axes[b].name}" for a, b in pairs}
    left_out = [name for pair, name in names.items() if pair not in drawn]
    listed = ", ".join(left_out[:MAX_MAPS])
    more = f" and {len(left_out) - MAX_MAPS} more" if len(left_out) > MAX_MAPS else ""
    why = f"No heat map of {listed}{more}: many values, few cells filled, or more than {MAX_MAPS} maps."
    if not drawn:
        return None, why if left_out else ""
    figure, all_axes = panels(len(drawn), columns=min(3, max(2, len(drawn))), height=3.0)
    shade = Shade.of(benchmark)
    for axes, pair in zip(all_axes, drawn, strict=True):
        across, up = (sweep.axes[at].restrict([row.values[at] for row in benchmark.rows]) for at in pair)
        _draw_heat_map(axes, across, up, *average_cells(benchmark.rows, pair, across, up), shade)
    all_axes[0].set_title(plain(f"{benchmark.name}: validation {axis_label(benchmark.metric)}", 60), y=1.03)
    shown = ", ".join(names[pair] for pair in drawn)
    alt = f"Mean validation metric on {benchmark.name} for each pair of values: {shown}."
    return Drawing(f"sweep_pairs_{file_name(benchmark.name)}", alt, figure), why if left_out else ""


def _fits_a_map(benchmark: Benchmark, pair: tuple[int, int]) -> bool:
    sizes = [len({row.values[at] for row in benchmark.rows}) for at in pair]
    filled = {tuple(row.values[at] for at in pair) for row in benchmark.rows if row.validated}
    return min(sizes) > 1 and max(sizes) <= MAX_CELLS and len(filled) >= MIN_FILLED * sizes[0] * sizes[1]


def average_cells(rows: Sequence[Row], pair: tuple[int, int], across: Axis, up: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Return means [values up, values across] and the numbers of lost runs; `pair` indexes a row's two values."""
    shape = len(up.values), len(across.values)
    total, validated, lost = (np.zeros(shape) for _ in range(3))
    for row in rows:
        cell = up.values.index(row.values[pair[1]]), across.values.index(row.values[pair[0]])
        lost[cell] += row.number_lost
        if row.validated:
            total[cell] += row.validation.mean
            validated[cell] += 1
    return np.divide(total, validated, out=np.full(shape, math.nan), where=validated > 0), lost


def _draw_heat_map(axes: Axes, across: Axis, up: Axis, means: np.ndarray, lost: np.ndarray, shade: Shade) -> None:
    many = len(across.values)
    for (y, x), mean in np.ndenumerate(means):
        known = math.isfinite(mean)
        look = {"facecolor": shade.colour(mean), "edgecolor": "white"} if known else {"facecolor": "white"}
        look |= {} if known else {"edgecolor": "#B5B5B5", "hatch": "///", "linewidth": 0}
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **look))
        text = (f"{mean:.3g}" if known else "") + (f"\n{lost[y, x]:.0f} lost" if lost[y, x] else "")
        ink, size = shade.ink(mean) if known else "black", 8 if many <= 6 else 6
        back = None if known else {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        axes.text(x, y, text.strip(), ha="center", va="center", fontsize=size, color=ink, bbox=back)
    axes.set(xlim=(-0.5, many - 0.5), ylim=(-0.5, len(up.values) - 0.5))
    axes.set_xticks(range(many), [plain(format_value(v), 10) for v in across.values])
    axes.set_yticks(range(len(up.values)), [plain(format_value(v), 8) for v in up.values])
    axes.set(xlabel=plain(across.name), ylabel=plain(up.name, 30))
    axes.tick_params(axis="x", rotation=45 if many > 6 else 0, length=0)
    axes.tick_params(axis="y", length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
