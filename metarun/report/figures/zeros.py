"""Test figures against how sparse the tested weights are, of runs with a penalty that makes zeros.

Left the share of exact zeros among the penalised weights, right the share at most the threshold of the summary. A line
joins the runs of one algorithm, one regularizer and one method in the order of their weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from metarun.report.figures.drawing import Drawing, Look, finish, legend_below, look, panels, plain
from metarun.report.read.facts import component, episode_size, looked_up, metric_of
from metarun.report.read.runs import Run
from metarun.report.tables.penalties import terms
from metarun.storage.text import axis_label, display_scale, is_number, number

SHARES = (("zeros_share", "exact zeros"), ("small_share", "at most {}"))


class Point(NamedTuple):
    line: str
    weight: float
    shares: tuple[float, float]
    mean: float
    half: float
    metric: str
    threshold: float


def sparsity_figure(runs: Sequence[Run]) -> Drawing | None:
    """None where fewer than two runs have zeros to compare."""
    points = [p for run in _of_one_benchmark(runs) if (p := _point(run))]
    if len({p.shares for p in points}) < 2:
        return None
    lines = {name: sorted((p for p in points if p.line == name), key=lambda p: p.weight) for name in _names(points)}
    looks = {name: look(at) for at, name in enumerate(lines)}
    figure, axes = panels(2, columns=2, legend=len(lines))
    for at, (_, title) in enumerate(SHARES):
        for name, members in lines.items():
            _draw(axes[at], members, at, looks[name])
        said = title.format(f"{points[0].threshold:g}")
        finish(axes[at], said, "share of penalised weights", f"test {plain(axis_label(points[0].metric))}")
    handles = [Line2D([], [], color=c, marker=m) for c, _, m in looks.values()]
    legend_below(figure, handles, [plain(name, 32) for name in lines])
    return Drawing("sparsity", " ".join(map(_in_words, points)), figure)


def _draw(axes: Axes, members: Sequence[Point], at: int, line: Look) -> None:
    x, y = [p.shares[at] for p in members], [p.mean for p in members]
    halves = [p.half if math.isfinite(p.half) else 0.0 for p in members]
    axes.errorbar(x, y, np.array(halves), color=line.colour, marker=line.marker, markersize=5, capsize=2, linewidth=1)


def _point(run: Run) -> Point | None:
    seen: Any = looked_up(run.summary, "sparsity.penalised")
    mean = run.summary.get("mean")
    if not isinstance(seen, Mapping) or not is_number(mean):
        return None
    zeros, small = (seen.get(key) for key, _ in SHARES)
    if not is_number(zeros) or not is_number(small):
        return None
    threshold, half = looked_up(run.summary, "sparsity.threshold"), run.summary.get("ci95")
    at_most = float(threshold) if is_number(threshold) else math.nan
    half = float(half) if is_number(half) else math.nan
    scale = display_scale(metric_of(run))
    return Point(_line(run), _weight(run), (zeros, small), scale * mean, scale * half, metric_of(run), at_most)


def _of_one_benchmark(runs: Sequence[Run]) -> list[Run]:
    """The runs on the benchmark that most are on: figures of others do not compare."""
    names = [(component(run, "data"), episode_size(run)) for run in runs]
    most = max(names, key=names.count, default=None)
    return [run for run, name in zip(runs, names, strict=True) if name == most]


def _line(run: Run) -> str:
    """`protonet, l1 prox`."""
    kinds = [" ".join(filter(None, (str(t.get("name")), t.get("method")))) for t in terms(run)]
    return f"{component(run, 'algo')}, {' + '.join(kinds)}"


def _weight(run: Run) -> float:
    weights = [t.get("weight") for t in terms(run)]
    return float(sum(w for w in weights if is_number(w)))


def _names(points: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(p.line for p in points))


def _in_words(point: Point) -> str:
    zeros, small = (f"{100 * share:.3g} %" for share in point.shares)
    return f"{point.line}, weight {point.weight:g}: {number(point.mean)} with {zeros} zeros, {small} small."
