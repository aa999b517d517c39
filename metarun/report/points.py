"""Figures of several runs that are points with intervals: what accuracy cost, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarun.report.drawing import COLOURS, GREY, Drawing, finish, plain
from metarun.report.groups import by_benchmark
from metarun.report.results import Pair, Result
from metarun.report.text import with_unit
from metarun.report.versus import Looks, grid, legend


def cost_and_figure(results: Sequence[Result], looks: Looks) -> Drawing | None:
    """The test figure against what training cost, in seconds and in inner gradient evaluations."""
    shown = [r for r in results if math.isfinite(r.test.mean)]
    if not shown:
        return None
    groups = [r.group for r in shown]
    benchmarks = by_benchmark(groups)
    figure, axes, texts = *grid(2 * len(benchmarks), groups, columns=2), []
    units = {"seconds of training": lambda r: r.seconds, "inner gradient evaluations": lambda r: r.inner_gradients}
    for at, benchmark in enumerate(benchmarks):
        members = [r for r in shown if r.group.benchmark == benchmark]
        for ax, (unit, cost) in zip(axes[2 * at : 2 * at + 2], units.items(), strict=True):
            _scatter(ax, members, cost, looks)
            title = plain(benchmark, 48) if unit.startswith("seconds") else "by gradient evaluations"
            means = np.array([r.test.mean for r in members])
            finish(ax, title, unit, plain(with_unit(members[0].group.metric)), [means])
        texts += [f"{r.group.label} on {benchmark}: {r.test.mean:.4g} in {r.seconds:.4g} seconds." for r in members]
    legend(figure, groups, looks)
    return Drawing("cost", " ".join(texts), figure)


def _scatter(axes: Axes, results: Sequence[Result], cost: Callable[[Result], float], looks: Looks) -> None:
    costs = [cost(r) for r in results if math.isfinite(cost(r))]
    if any(c > 0 for c in costs) and max(costs) > 5 * min(costs):
        smallest = min(c for c in costs if c > 0)
        axes.set_xscale("log" if min(costs) > 0 else "symlog", **({} if min(costs) > 0 else {"linthresh": smallest}))
    for r in results:
        half = r.test.half if math.isfinite(r.test.half) else 0.0
        axes.errorbar(
            [cost(r)], [r.test.mean], [half], color=looks[r.group.label].colour, marker=looks[r.group.label].marker,
            markersize=6, capsize=3, linestyle="none",
        )  # fmt: skip


def differences(pairs: Sequence[Pair]) -> Drawing | None:
    """The paired differences with their intervals, and those that unpaired tasks would have given."""
    shown = [p for p in pairs if p.comparison is not None]
    if not shown:
        return None
    figure = Figure(figsize=(7.2, 0.9 + 0.3 * len(shown)))
    left, foot = 0.46, 0.55 / figure.get_figheight()
    axes = figure.add_axes((left, foot, 0.51, 1 - foot - 0.3 / figure.get_figheight()))
    for row, pair in enumerate(reversed(shown)):
        found = pair.comparison
        assert found is not None
        where = [found.difference], [row]
        axes.errorbar(*where, xerr=[found.unpaired_half], color="#BBBBBB", capsize=2, linestyle="none")
        axes.errorbar(*where, xerr=[found.half], color=COLOURS[0], capsize=4, marker="o", linewidth=2)
    names = [f"{plain(p.a.label, 26)} \N{MINUS SIGN} {plain(p.b.label, 26)}" for p in reversed(shown)]
    axes.axvline(0, color=GREY, linewidth=0.9)
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    finish_x = with_unit(shown[0].a.metric) if len({p.a.metric for p in shown}) == 1 else "difference"
    axes.set_xlabel(plain(f"difference in {finish_x}: dark paired, light unpaired"))
    return Drawing("pairs", "Paired differences as in the table beside this figure.", figure)
