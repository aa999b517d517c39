"""Figures of several runs that are points with intervals: what accuracy cost, and paired differences."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarun.report.compare.groups import by_benchmark
from metarun.report.compare.results import Pair, Result
from metarun.report.figures.comparison import Looks, grid, legend, time_unit
from metarun.report.figures.drawing import COLOURS, GREY, WIDTH, Drawing, finish, plain, wide_costs
from metarun.storage.text import axis_label, display_unit, number


def cost_and_figure(results: Sequence[Result], looks: Looks) -> Drawing | None:
    """The test figure against what training cost, in time and in inner gradient evaluations."""
    shown = [r for r in results if math.isfinite(r.test.mean)]
    if not shown:
        return None
    groups = [r.group for r in shown]
    benchmarks = by_benchmark(groups)
    figure, axes, texts = *grid(2 * len(benchmarks), groups, columns=2), []
    for at, benchmark in enumerate(benchmarks):
        members = [r for r in shown if r.group.benchmark == benchmark]
        seconds = [r.seconds for r in members]
        unit, by = time_unit(seconds)
        scatter(axes[2 * at], members, [s / by for s in seconds], looks)
        scatter(axes[2 * at + 1], members, [r.inner_gradients for r in members], looks)
        means, metric = [np.array([r.test.mean for r in members])], plain(axis_label(members[0].group.metric))
        finish(axes[2 * at], plain(benchmark, 48), f"{unit} of training", f"test {metric}", means)
        finish(axes[2 * at + 1], "by gradients", "inner gradient evaluations", f"test {metric}", means)
        texts += [f"{r.group.label} on {benchmark}: {r.test.mean:.4g} in {r.seconds:.4g} seconds." for r in members]
    legend(figure, groups, looks)
    return Drawing("cost", " ".join(texts), figure)


def scatter(axes: Axes, results: Sequence[Result], costs: Sequence[float], looks: Looks) -> None:
    wide_costs(axes, [cost for cost in costs if math.isfinite(cost)])
    for r, cost in zip(results, costs, strict=True):
        half = r.test.half if r.test.half > 0 else 0.0  # NaN, too, has none
        colour, _, marker = looks[r.group.label]
        axes.errorbar([cost], [r.test.mean], [half], color=colour, marker=marker, markersize=6, capsize=3)


def differences(pairs: Sequence[Pair]) -> Drawing | None:
    """The paired differences of one benchmark with their intervals, and those that unpaired tasks would have given."""
    shown = [p for p in reversed(pairs) if p.comparison]
    if not shown:
        return None
    height = 0.85 + 0.27 * len(shown)
    figure = Figure(figsize=(WIDTH * 0.75, height))
    axes = figure.add_axes((0.42, 0.5 / height, 0.55, (height - 0.85) / height))
    for row, pair in enumerate(shown):
        found = pair.comparison
        assert found is not None
        where = [found.difference], [row]
        axes.errorbar(*where, xerr=[found.unpaired_half], color="#B5B5B5", capsize=2)
        axes.errorbar(*where, xerr=[found.half], color=COLOURS[0], capsize=4, marker="o", linewidth=2)
    axes.axvline(0, color=GREY, linewidth=0.9)
    metric = shown[0].a.metric
    unit = f"difference in {metric}, points" if display_unit(metric) else f"difference in {axis_label(metric)}"
    finish(axes, plain(shown[0].a.benchmark, 60), plain(unit, 60), "")
    axes.set_yticks(range(len(shown)), [_versus(pair) for pair in shown])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    return Drawing(f"pairs_{file_name(shown[0].a.benchmark)}", _in_words(shown), figure)


def _versus(pair: Pair) -> str:
    return f"{plain(pair.a.label, 26)} \N{MINUS SIGN} {plain(pair.b.label, 26)}"


def _in_words(pairs: Sequence[Pair]) -> str:
    found = [(p, p.comparison) for p in reversed(pairs) if p.comparison]
    return " ".join(f"{p.a.label} less {p.b.label}: {number(c.difference)} ± {number(c.half)}." for p, c in found)


def file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")
