"""Figures of several runs: one panel a benchmark, one line a group, the same look for a label everywhere.

A line is the mean over a group's seeds at the steps that all of them reached. Its band goes from the lowest to the
highest seed; of a single seed's test it is the 95 % interval over tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from metarun.report.compare.groups import Group, by_benchmark
from metarun.report.figures.drawing import Drawing, Look, finish, legend_below, long_steps, look, panels, plain
from metarun.report.figures.lines import SMOOTHING, reference, smoothed, thinned, with_band
from metarun.report.figures.metrics import Curve, described, never_changes
from metarun.report.figures.panels import COMPARED, GRADIENTS, INNER, Panel
from metarun.report.read.facts import adaptation, validations, values
from metarun.report.read.runs import Run
from metarun.storage.text import axis_label

Looks = Mapping[str, Look]


def looks_of(groups: Sequence[Group]) -> Looks:
    return {label: look(at) for at, label in enumerate(dict.fromkeys(g.label for g in groups))}


def mean_of(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps that all curves have, the mean there, the lowest and the highest."""
    tables = [dict(zip(x.tolist(), y.tolist(), strict=True)) for x, y in curves]
    common = sorted(set.intersection(*map(set, tables))) if tables else []
    if not common:
        return (np.zeros(0),) * 4
    rows = np.array([[table[step] for step in common] for table in tables])
    return np.array(common), rows.mean(0), rows.min(0), rows.max(0)


def learning_curves(groups: Sequence[Group], looks: Looks) -> Drawing | None:
    """Validation against outer steps and against time."""
    shown = [g for g in groups if any(validations(r) for r in g.runs)]
    if not shown:
        return None
    benchmarks = by_benchmark(shown)
    figure, axes, texts = *grid(2 * len(benchmarks), shown, columns=2), []
    for at, (benchmark, members) in enumerate(benchmarks.items()):
        means = {g.label: _by_steps(axes[2 * at], g, looks[g.label]) for g in members}
        unit, by = time_unit([p.seconds for g in members for r in g.runs for p in validations(r)])
        for group in members:
            _by_time(axes[2 * at + 1], group, looks[group.label], by)
        drawn, metric = [y for _, y in means.values()], plain(axis_label(members[0].metric))
        finish(axes[2 * at], plain(benchmark, 48), "outer steps", f"validation {metric}", drawn)
        finish(axes[2 * at + 1], "by time, one line a seed", f"{unit} of training", f"validation {metric}", drawn)
        texts += [described(f"{label}, validation on {benchmark}", curve) for label, curve in means.items()]
    legend(figure, shown, looks)
    return Drawing("learning", " ".join(texts), figure)


def _by_steps(axes: Axes, group: Group, look: Look) -> Curve:
    x, mean, low, high = mean_of([_validation(r, "step") for r in group.runs if validations(r)])
    with_band(axes, x, mean, low, high, look)
    return x, mean


def _by_time(axes: Axes, group: Group, look: Look, by: float) -> None:
    for run in group.runs:
        seconds, means = _validation(run, "seconds")
        _line(axes, seconds / by, means, look)


def time_unit(seconds: Sequence[float]) -> tuple[str, float]:
    """Seconds, minutes or hours, and how many seconds that is."""
    longest = max((s for s in seconds if math.isfinite(s)), default=0.0)
    return ("hours", 3600.0) if longest > 4 * 3600 else ("minutes", 60.0) if longest > 300 else ("seconds", 1.0)


def _validation(run: Run, by: str) -> Curve:
    points = validations(run)
    return np.array([getattr(p, by) for p in points], dtype=float), np.array([p.mean for p in points], dtype=float)


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, look: Look) -> None:
    marker = look.marker if len(x) <= 40 else ""
    axes.plot(x, y, color=look.colour, linestyle=look.dash, marker=marker, linewidth=1.2)


def adaptation_curves(groups: Sequence[Group], looks: Looks) -> Drawing | None:
    """Test figure against adaptation steps; a learner without steps is one point."""
    shown = [g for g in groups if any(adaptation(r) for r in g.runs)]
    if not shown:
        return None
    benchmarks = by_benchmark(shown)
    figure, axes, texts = *grid(len(benchmarks), shown, columns=2), []
    for ax, (benchmark, members) in zip(axes, benchmarks.items(), strict=True):
        means = {g.label: _by_adaptation(ax, g, looks[g.label]) for g in members}
        drawn, metric = [y for _, y in means.values()], plain(axis_label(members[0].metric))
        finish(ax, plain(benchmark, 48), "adaptation steps", f"test {metric}", drawn)
        long_steps(ax, max((float(x.max()) for x, _ in means.values() if len(x)), default=0.0))
        texts += [described(f"{label}, test on {benchmark} over adaptation steps", c) for label, c in means.items()]
    legend(figure, shown, looks)
    return Drawing("adaptation", " ".join(texts), figure)


def _by_adaptation(axes: Axes, group: Group, look: Look) -> Curve:
    curves = [c for c in map(adaptation, group.runs) if c]
    x, mean, low, high = mean_of([(c["step"], c["mean"]) for c in curves])
    if len(curves) == 1:
        low, high = mean - curves[0]["ci95"], mean + curves[0]["ci95"]
    with_band(axes, x, mean, low, high, look)
    return x, mean


def measure_curves(groups: Sequence[Group], looks: Looks) -> Drawing | None:
    """Measures of gradients and inner loops in training: running medians of means over seeds, of those that change."""
    found = [(panel, key, _measured(groups, key)) for panel in (*GRADIENTS, *INNER) for key in panel.names]
    wanted = [f for f in found if f[1] in COMPARED and not all(map(never_changes, f[2].values()))]
    if not wanted:
        return None
    figure, axes = grid(len(wanted), groups, columns=3)
    for ax, (panel, _, curves) in zip(axes, wanted, strict=True):
        _measure(ax, panel, curves, looks)
    legend(figure, groups, looks)
    names = ", ".join(panel.title for panel, _, _ in wanted)
    return Drawing("measures", f"Training measures over outer steps, a line for each group: {names}.", figure)


def _measure(axes: Axes, panel: Panel, curves: Mapping[str, Curve], looks: Looks) -> None:
    shown = [y for _, y in curves.values()]
    for label, (x, mean) in curves.items():
        smooth = smoothed(mean, max(1, len(mean) // SMOOTHING))
        _line(axes, *thinned(x, smooth), looks[label]._replace(marker=""))
    if panel.reference:
        reference(axes, *panel.reference)
        shown.append(np.array(panel.reference[:1]))
    finish(axes, plain(panel.title), "outer steps", plain(panel.y, 30), shown)


def _measured(groups: Sequence[Group], key: str) -> dict[str, Curve]:
    """The mean over seeds by label, of the groups that logged the number."""
    found = {}
    for group in groups:
        curves = [c for c in (values(run.of("train"), key) for run in group.runs) if len(c[0])]
        x, mean, _, _ = mean_of(curves)
        if len(x):
            found[group.label] = x, mean
    return found


def grid(count: int, groups: Sequence[Group], columns: int) -> tuple[Figure, list[Axes]]:
    return panels(count, columns, len({g.label for g in groups}), height=2.7)


def legend(figure: Figure, groups: Sequence[Group], looks: Looks) -> None:
    labels = list(dict.fromkeys(g.label for g in groups))
    handles = [Line2D([], [], color=looks[k].colour, linestyle=looks[k].dash, marker=looks[k].marker) for k in labels]
    legend_below(figure, handles, [plain(label, 34) for label in labels])
