"""Figures of several runs: one panel a benchmark, one line a group, the same look for a label everywhere.

A line is the mean over a group's seeds at the steps that all of them reached. Its band goes from the lowest to the
highest seed; of a single seed's test it is the 95 % interval over tasks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from metarun.report.compare.groups import Group, by_benchmark
from metarun.report.compare.results import Interval, Pair, Result, test_interval
from metarun.report.figures import drawing
from metarun.report.figures.chart import Chart, chart_line
from metarun.report.figures.drawing import Curve, Drawing, Look, describe_curve, finish, look, panels, plain
from metarun.report.figures.panels import COMPARED, GRADIENTS, INNER, Panel, reference_of
from metarun.report.figures.run import finish_panel, never_changes
from metarun.report.read import facts
from metarun.report.read.runs import Run
from metarun.storage.text import axis_label, difference_label, is_number, number

Looks = Mapping[str, Look]
SHARES = {"zeros_share": "exact zeros", "small_share": "at most {}"}  # of the penalised weights


def looks_of(labels: Sequence[str]) -> dict[str, Look]:
    return {label: look(at) for at, label in enumerate(dict.fromkeys(labels))}


def file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")


def average_curves(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the steps that all curves have, and there the mean, the lowest and the highest."""
    tables = [dict(zip(x.tolist(), y.tolist(), strict=True)) for x, y in curves]
    common = sorted(set.intersection(*map(set, tables))) if tables else []
    if not common:
        return (np.zeros(0),) * 4
    rows = np.array([[table[step] for step in common] for table in tables])
    return np.array(common), rows.mean(0), rows.min(0), rows.max(0)


def draw_learning_curves(groups: Sequence[Group], looks: Looks) -> Drawing | None:
    """Draw validation against outer steps and against time."""
    shown = [g for g in groups if any(r.of("val") for r in g.runs)]
    if not shown:
        return None
    benchmarks = by_benchmark(shown)
    figure, axes, texts = *_grid(2 * len(benchmarks), shown, columns=2), []
    charts = []
    for at, (benchmark, members) in enumerate(benchmarks.items()):
        left, right = axes[2 * at], axes[2 * at + 1]
        curves = {g.label: [c for c in map(facts.validation_curve, g.runs) if c] for g in members}
        unit, by = time_unit([s for same in curves.values() for c in same for s in c["seconds"]])
        means, by_step, by_time = [], [], []
        for group in members:
            own = looks[group.label]
            x, mean, low, high = average_curves([(c["step"], c["mean"]) for c in curves[group.label]])
            drawing.plot_band(left, x, mean, low, high, own)
            means.append(mean)
            by_step.append(chart_line(group.label, (x, mean), own, low=low, high=high))
            by_time += [chart_line(group.label, (c["seconds"] / by, c["mean"]), own) for c in curves[group.label]]
            texts.append(describe_curve(f"{group.label}, validation on {benchmark}", (x, mean)))
            for curve in curves[group.label]:
                _plot_line(right, curve["seconds"] / by, curve["mean"], own)
        label = f"validation {plain(axis_label(members[0].metric))}"
        finish(left, plain(benchmark, 48), "outer steps", label, means)
        finish(right, "by time, one line a seed", f"{unit} of training", label, means)
        name = f"validation {axis_label(members[0].metric)}"
        charts.append(Chart(benchmark, "outer steps", name, by_step))
        charts.append(Chart("by time, one line a seed", f"{unit} of training", name, by_time))
    _add_legend(figure, shown, looks)
    return Drawing("learning", " ".join(texts), figure, charts)


def time_unit(seconds: Sequence[float]) -> tuple[str, float]:
    """Return hours, minutes or seconds, and the number of seconds that it has."""
    longest = max((s for s in seconds if math.isfinite(s)), default=0.0)
    return ("hours", 3600.0) if longest > 4 * 3600 else ("minutes", 60.0) if longest > 300 else ("seconds", 1.0)


def _plot_line(axes: Axes, x: np.ndarray, y: np.ndarray, look: Look) -> None:
    marker = look.marker if len(x) <= drawing.MAX_MARKED else ""
    axes.plot(x, y, color=look.colour, linestyle=look.dash, marker=marker, linewidth=1.2)


def draw_adaptation_curves(groups: Sequence[Group], looks: Looks) -> Drawing | None:
    """Draw the test metric against adaptation steps; a learner without steps is one point."""
    shown = [g for g in groups if any(facts.test_curve(r) for r in g.runs)]
    if not shown:
        return None
    benchmarks = by_benchmark(shown)
    figure, axes, texts = *_grid(len(benchmarks), shown, columns=2), []
    charts = []
    for ax, (benchmark, members) in zip(axes, benchmarks.items(), strict=True):
        means, last, lines = [], 0.0, []
        for group in members:
            curves = [curve for curve in map(facts.test_curve, group.runs) if curve]
            x, mean, low, high = average_curves([(c["step"], c["mean"]) for c in curves])
            if len(curves) == 1:
                low, high = mean - curves[0]["ci95"], mean + curves[0]["ci95"]
            drawing.plot_band(ax, x, mean, low, high, looks[group.label])
            lines.append(chart_line(group.label, (x, mean), looks[group.label], low=low, high=high))
            means.append(mean)
            last = max([last, *x.tolist()])
            texts.append(describe_curve(f"{group.label}, test on {benchmark} over adaptation steps", (x, mean)))
        label = f"test {plain(axis_label(members[0].metric))}"
        finish(ax, plain(benchmark, 48), "adaptation steps", label, means)
        drawing.use_root_scale(ax, last)
        charts.append(Chart(benchmark, "adaptation steps", f"test {axis_label(members[0].metric)}", lines))
    _add_legend(figure, shown, looks)
    return Drawing("adaptation", " ".join(texts), figure, charts)


def draw_training_metrics(groups: Sequence[Group], looks: Looks) -> Drawing | None:
    """Draw metrics of gradients and inner loops in training: running medians of means over seeds, if they change."""
    wanted: list[tuple[Panel, dict[str, Curve]]] = []
    for panel, key in ((p, key) for p in (*GRADIENTS, *INNER) for key in p.names if key in COMPARED):
        averages = {}
        for group in groups:
            logged = [curve for run in group.runs if len((curve := facts.series(run.of("train"), key))[0])]
            averages[group.label] = average_curves(logged)[:2]
        curves = {label: curve for label, curve in averages.items() if len(curve[0])}
        if not all(map(never_changes, curves.values())):
            wanted.append((panel, curves))
    if not wanted:
        return None
    figure, axes = _grid(len(wanted), groups, columns=3)
    charts = []
    for ax, (panel, curves) in zip(axes, wanted, strict=True):
        for label, (x, mean) in curves.items():
            smoothed = drawing.smooth(mean, max(1, len(mean) // drawing.SMOOTHING))
            _plot_line(ax, *drawing.thin(x, smoothed), looks[label]._replace(marker=""))
        finish_panel(ax, panel, [y for _, y in curves.values()])
        lines = [chart_line(label, curve, looks[label], noisy=True) for label, curve in curves.items()]
        charts.append(Chart(panel.title, "outer steps", panel.y, lines, (), reference_of(panel)))
    _add_legend(figure, groups, looks)
    names = ", ".join(panel.title for panel, _ in wanted)
    return Drawing("measures", f"Training metrics over outer steps, a line for each group: {names}.", figure, charts)


def _grid(count: int, groups: Sequence[Group], columns: int) -> tuple[Figure, list[Axes]]:
    return panels(count, columns, len({g.label for g in groups}), height=2.7)


def _add_legend(figure: Figure, groups: Sequence[Group], looks: Looks) -> None:
    labels = list(dict.fromkeys(g.label for g in groups))
    handles = [Line2D([], [], color=looks[k].colour, linestyle=looks[k].dash, marker=looks[k].marker) for k in labels]
    drawing.legend_below(figure, handles, [plain(label, 34) for label in labels])


def draw_costs(results: Sequence[Result], looks: Looks) -> Drawing | None:
    """Draw the test metric against the cost of training, in time and in inner gradient evaluations."""
    shown = [r for r in results if math.isfinite(r.test.mean)]
    if not shown:
        return None
    groups = [r.group for r in shown]
    benchmarks = by_benchmark(groups)
    figure, axes, texts = *_grid(2 * len(benchmarks), groups, columns=2), []
    for at, benchmark in enumerate(benchmarks):
        members = [r for r in shown if r.group.benchmark == benchmark]
        unit, by = time_unit([r.seconds for r in members])
        _scatter(axes[2 * at], members, [r.seconds / by for r in members], looks)
        _scatter(axes[2 * at + 1], members, [r.inner_gradients for r in members], looks)
        means = [np.array([r.test.mean for r in members])]
        label = f"test {plain(axis_label(members[0].group.metric))}"
        finish(axes[2 * at], plain(benchmark, 48), f"{unit} of training", label, means)
        finish(axes[2 * at + 1], "by gradients", "inner gradient evaluations", label, means)
        texts += [f"{r.group.label} on {benchmark}: {r.test.mean:.4g} in {r.seconds:.4g} seconds." for r in members]
    _add_legend(figure, groups, looks)
    return Drawing("cost", " ".join(texts), figure)


def _scatter(axes: Axes, results: Sequence[Result], costs: Sequence[float], looks: Looks) -> None:
    drawing.scale_costs(axes, [cost for cost in costs if math.isfinite(cost)])
    for r, cost in zip(results, costs, strict=True):
        half = r.test.half if r.test.half > 0 else 0.0  # NaN, too, has none
        colour, _, marker = looks[r.group.label]
        axes.errorbar([cost], [r.test.mean], [half], color=colour, marker=marker, markersize=6, capsize=3)


def draw_differences(pairs: Sequence[Pair]) -> Drawing | None:
    """Draw the paired differences of one benchmark with their intervals, and the intervals of unpaired tasks."""
    shown = [(p, p.comparison) for p in pairs if p.comparison]
    if not shown:
        return None
    height = 0.85 + 0.27 * len(shown)
    figure = Figure(figsize=(drawing.WIDTH * 0.75, height))
    axes = figure.add_axes((0.42, 0.5 / height, 0.55, (height - 0.85) / height))
    for row, (_, found) in enumerate(reversed(shown)):
        where = [found.difference], [row]
        axes.errorbar(*where, xerr=[found.unpaired_half], color="#B5B5B5", capsize=2)
        axes.errorbar(*where, xerr=[found.half], color=drawing.COLOURS[0], capsize=4, marker="o", linewidth=2)
    axes.axvline(0, color=drawing.GREY, linewidth=0.9)
    benchmark, metric = shown[0][0].a.benchmark, shown[0][0].a.metric
    finish(axes, plain(benchmark, 60), plain(difference_label(metric), 60), "")
    labels = [f"{plain(p.a.label, 26)} \N{MINUS SIGN} {plain(p.b.label, 26)}" for p, _ in reversed(shown)]
    axes.set_yticks(range(len(shown)), labels)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    texts = [f"{p.a.label} minus {p.b.label}: {number(c.difference)} ± {number(c.half)}." for p, c in shown]
    return Drawing(f"pairs_{file_name(benchmark)}", " ".join(texts), figure)


class SparseRun(NamedTuple):
    """Zeros of one run's tested weights, and its test metric in display units."""

    line: str
    weight: float
    shares: tuple[float, float]  # of exact zeros, and of weights at most the threshold
    test: Interval
    metric: str
    threshold: float


def draw_sparsity(runs: Sequence[Run]) -> Drawing | None:
    """Draw the test metric against the sparsity of the tested weights, for runs with a penalty that makes zeros.

    Left the share of exact zeros among the penalised weights, right the share at most the threshold of the summary. A
    line joins the runs of one algorithm, one regularizer and one method in the order of their weights. None if fewer
    than two runs have zeros to compare.
    """
    names = [(facts.component(run, "data"), facts.episode_size(run)) for run in runs]
    most = max(names, key=names.count, default=None)  # metrics of other benchmarks do not compare
    points = [p for run, name in zip(runs, names, strict=True) if name == most and (p := _measure_sparsity(run))]
    if len({p.shares for p in points}) < 2:
        return None
    looks = looks_of([p.line for p in points])
    figure, axes = panels(2, columns=2, legend=len(looks))
    for at, (ax, title) in enumerate(zip(axes, SHARES.values(), strict=True)):
        for line, own in looks.items():
            members = sorted((p for p in points if p.line == line), key=lambda p: p.weight)
            halves = np.nan_to_num([p.test.half for p in members])
            x, y = [p.shares[at] for p in members], [p.test.mean for p in members]
            ax.errorbar(x, y, halves, color=own.colour, marker=own.marker, markersize=5, capsize=2, linewidth=1)
        label = f"test {plain(axis_label(points[0].metric))}"
        finish(ax, title.format(f"{points[0].threshold:g}"), "share of penalised weights", label)
    handles = [Line2D([], [], color=c, marker=m) for c, _, m in looks.values()]
    drawing.legend_below(figure, handles, [plain(line, 32) for line in looks])
    texts = []
    for p in points:
        zeros, small = (f"{100 * share:.3g} %" for share in p.shares)
        texts.append(f"{p.line}, weight {p.weight:g}: {number(p.test.mean)} with {zeros} zeros, {small} small.")
    return Drawing("sparsity", " ".join(texts), figure)


def _measure_sparsity(run: Run) -> SparseRun | None:
    metric = facts.metric_of(run)
    test = test_interval([run], metric)
    zeros, small = (facts.look_up(run.summary, f"sparsity.penalised.{key}") for key in SHARES)
    if not math.isfinite(test.mean) or not is_number(zeros) or not is_number(small):
        return None
    threshold = facts.look_up(run.summary, "sparsity.threshold")
    kinds = [" ".join(filter(None, (str(t.get("name")), t.get("method")))) for t in facts.penalty_terms(run)]
    return SparseRun(
        line=f"{facts.component(run, 'algo')}, {' + '.join(kinds)}",
        weight=float(sum(w for t in facts.penalty_terms(run) if is_number(w := t.get("weight")))),
        shares=(zeros, small),
        test=test,
        metric=metric,
        threshold=float(threshold) if is_number(threshold) else math.nan,
    )
