"""Figures of swept settings: a line for each combination across the settings, and means for each pair of settings.

Everything is coloured by the validation figure, dark the best, on one scale a benchmark.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from metarun.report.compare.axes import Axis, shown
from metarun.report.compare.combinations import Benchmark, Row, Swept
from metarun.report.figures.drawing import Drawing, panels, plain
from metarun.report.figures.parallel import MOST_AXES, parallel
from metarun.report.figures.points import file_name
from metarun.report.figures.shade import Shade, shade_of
from metarun.storage.text import axis_label

MOST_BENCHMARKS, MOST_MAPS = 3, 6
MOST_CELLS = 12  # values of an axis, beyond which a heat map is not drawn
LEAST_FILLED = 0.3  # share of the cells that have a figure
PARALLEL = (
    "Each line is a combination of swept settings, from setting to setting to its validation figure (mean over seeds) "
    "at the right; dark is better, the thick line the best. Grey, dashed: no run of it completed."
)
HEAT = (
    "Cells: the validation figure, a mean over seeds and over all other settings, of the combinations that have one; "
    "dark is better, hatched: none. Where runs diverged or failed their number is below it, and the mean is flattered."
)


def drawings_of(found: Swept) -> tuple[tuple[Drawing, ...], tuple[str, ...]]:
    """The figures of the benchmarks that have two validated combinations or more, and what to know of them."""
    drawn = [b for b in found.benchmarks if sum(math.isfinite(row.validation.mean) for row in b.rows) > 1]
    drawings, texts = [], [PARALLEL] if drawn else []
    for benchmark in drawn[:MOST_BENCHMARKS]:
        places = found.varied(benchmark)
        drawings.append(parallel([found.axes[at] for at in places], _kept(benchmark, places)))
        if len(places) > MOST_AXES:
            texts.append(f"Left out of the lines: {', '.join(found.axes[at].name for at in places[MOST_AXES:])}.")
        maps, left_out = heat_maps(found, benchmark, places)
        drawings += [maps] if maps else []
        texts += [HEAT] if maps and HEAT not in texts else []
        texts += [left_out] if left_out else []
    rest = [b.name for b in drawn[MOST_BENCHMARKS:]]
    return tuple(drawings), (*texts, *([f"Not drawn: {', '.join(rest)}."] if rest else []))


def _kept(benchmark: Benchmark, places: Sequence[int]) -> Benchmark:
    """The benchmark with the values at these places alone."""
    rows = tuple(row._replace(values=tuple(row.values[at] for at in places)) for row in benchmark.rows)
    return benchmark._replace(rows=rows)


def heat_maps(found: Swept, benchmark: Benchmark, places: Sequence[int]) -> tuple[Drawing | None, str]:
    """A map for each pair of settings with few values, and which pairs are left out."""
    pairs = list(itertools.combinations(places, 2))
    usable = [pair for pair in pairs if _is_map(benchmark, pair)]
    taken = usable[:MOST_MAPS]
    left_out = [f"{found.axes[a].name} by {found.axes[b].name}" for a, b in pairs if (a, b) not in taken]
    why = f"No heat map of {_listed(left_out)}: many values, few cells filled, or more than {MOST_MAPS} maps."
    if not taken:
        return None, why if left_out else ""
    figure, all_axes = panels(len(taken), columns=min(3, max(2, len(taken))), height=3.0)
    shade = shade_of(benchmark)
    for axes, pair in zip(all_axes, taken, strict=True):
        across, up = (found.axes[at].among([row.values[at] for row in benchmark.rows]) for at in pair)
        _draw(axes, pair, across, up, benchmark.rows, shade)
    all_axes[0].set_title(plain(f"{benchmark.name}: validation {axis_label(benchmark.metric)}", 60), y=1.03)
    names = ", ".join(f"{found.axes[a].name} by {found.axes[b].name}" for a, b in taken)
    alt = f"Mean validation figure on {benchmark.name} for each pair of values: {names}."
    return Drawing(f"sweep_pairs_{file_name(benchmark.name)}", alt, figure), why if left_out else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_MAPS]) + (f" and {len(names) - MOST_MAPS} more" if len(names) > MOST_MAPS else "")


def _is_map(benchmark: Benchmark, pair: tuple[int, int]) -> bool:
    sizes = [len({row.values[at] for row in benchmark.rows}) for at in pair]
    filled = {tuple(row.values[at] for at in pair) for row in benchmark.rows if math.isfinite(row.validation.mean)}
    return min(sizes) > 1 and max(sizes) <= MOST_CELLS and len(filled) >= LEAST_FILLED * sizes[0] * sizes[1]


def cell_means(rows: Sequence[Row], pair: tuple[int, int], across: Axis, up: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Means [values up, values across] and the numbers of runs lost there; `pair` is where a row has its two values."""
    cells: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        x, y = row.values[pair[0]], row.values[pair[1]]
        cells.setdefault((up.values.index(y), across.values.index(x)), []).append(row)
    means, lost = (
        np.full((len(up.values), len(across.values)), math.nan),
        np.zeros((len(up.values), len(across.values))),
    )
    for at, members in cells.items():
        found = [row.validation.mean for row in members if math.isfinite(row.validation.mean)]
        means[at] = sum(found) / len(found) if found else math.nan
        lost[at] = sum(row.number_lost for row in members)
    return means, lost


def _draw(axes: Axes, pair: tuple[int, int], across: Axis, up: Axis, rows: Sequence[Row], shade: Shade) -> None:
    means, lost = cell_means(rows, pair, across, up)
    many = len(across.values)
    for (y, x), mean in np.ndenumerate(means):
        _cell(axes, x, y, float(mean), int(lost[y, x]), shade, many)
    axes.set(xlim=(-0.5, many - 0.5), ylim=(-0.5, len(up.values) - 0.5))
    axes.set_xticks(range(many), [plain(shown(v), 10) for v in across.values])
    axes.set_yticks(range(len(up.values)), [plain(shown(v), 8) for v in up.values])
    axes.set(xlabel=plain(across.name), ylabel=plain(up.name, 30))
    axes.tick_params(axis="x", rotation=45 if many > 6 else 0, length=0)
    axes.tick_params(axis="y", length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _cell(axes: Axes, x: int, y: int, mean: float, lost: int, shade: Shade, across: int) -> None:
    box = (x - 0.5, y - 0.5), 1, 1
    if math.isfinite(mean):
        axes.add_patch(Rectangle(*box, facecolor=shade.colour(mean), edgecolor="white"))
    else:
        axes.add_patch(Rectangle(*box, facecolor="white", edgecolor="#B5B5B5", hatch="///", linewidth=0))
    text = (f"{mean:.3g}" if math.isfinite(mean) else "") + (f"\n{lost} lost" if lost else "")
    back = None if math.isfinite(mean) else {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    ink = shade.ink(mean) if math.isfinite(mean) else "black"
    axes.text(x, y, text.strip(), ha="center", va="center", fontsize=8 if across <= 6 else 6, color=ink, bbox=back)
