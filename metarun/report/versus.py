"""Figures of several runs: one panel a benchmark, one line a group, the same look for a label everywhere.

A line is the mean over a group's seeds at the steps that all of them reached. Its band goes from the lowest to the
highest seed; of a single seed's test it is the 95 % interval over tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from metarun.report.drawing import GREY, Drawing, Look, finish, legend_below, look, panels, plain
from metarun.report.facts import adaptation, keys, validations, values
from metarun.report.groups import Group, by_benchmark
from metarun.report.lines import running_mean, thinned, with_band
from metarun.report.measures import Curve, described
from metarun.report.names import COMPARED, GRADIENTS, INNER
from metarun.report.read import Run
from metarun.report.text import with_unit

LEGEND_COLUMNS = 3
Looks = Mapping[str, Look]


def looks_of(groups: Sequence[Group]) -> Looks:
    return {label: look(at) for at, label in enumerate(dict.fromkeys(g.label for g in groups))}


def mean_of(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps that all curves have, the mean there, the lowest and the highest."""
    common = sorted(set.intersection(*(set(x.tolist()) for x, _ in curves))) if curves else []
    rows = np.array([[dict(zip(x.tolist(), y, strict=True))[step] for step in common] for x, y in curves])
    rows = rows.reshape(len(curves), len(common))
    with np.errstate(invalid="ignore"):
        return np.array(common), rows.mean(0), rows.min(0), rows.max(0)


def learning_curves(groups: Sequence[Group], looks: Looks) -> Drawing | None:
    """Validation against outer steps and against time."""
    shown = [g for g in groups if any(validations(r) for r in g.runs)]
    if not shown:
        return None
    benchmarks = by_benchmark(shown)
    figure, axes, texts = *grid(2 * len(benchmarks), shown, columns=2), []
    for at, (benchmark, members) in enumerate(benchmarks.items()):
        left, right = axes[2 * at], axes[2 * at + 1]
        drawn = []
        for group in members:
            x, mean, low, high = mean_of([_validation(r, "step") for r in group.runs if validations(r)])
            with_band(left, x, mean, low, high, looks[group.label])
            for run in group.runs:
                _line(right, *_validation(run, "seconds"), looks[group.label])
            drawn.append(mean)
            texts.append(described(f"{group.label}, validation on {benchmark}", (x, mean)))
        metric = plain(with_unit(members[0].metric))
        finish(left, plain(benchmark, 48), "outer steps", metric, drawn)
        finish(right, "by time, one line a seed", "seconds of training", metric, drawn)
    legend(figure, shown, looks)
    return Drawing("learning", " ".join(texts), figure)


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
        drawn = []
        for group in members:
            curves = [c for c in map(adaptation, group.runs) if c]
            x, mean, low, high = mean_of([(c["step"], c["mean"]) for c in curves])
            if len(curves) == 1:
                low, high = mean - curves[0]["ci95"], mean + curves[0]["ci95"]
            with_band(ax, x, mean, low, high, looks[group.label])
            drawn.append(mean)
            texts.append(described(f"{group.label}, test on {benchmark} over adaptation steps", (x, mean)))
        finish(ax, plain(benchmark, 48), "adaptation steps", plain(with_unit(members[0].metric)), drawn)
    legend(figure, shown, looks)
    return Drawing("adaptation", " ".join(texts), figure)


def measure_curves(groups: Sequence[Group], looks: Looks) -> Drawing | None:
    """Gradient and inner-loop measures of training: running means, averaged over seeds."""
    present = {key for g in groups for r in g.runs for key in keys(r.of("train"))}
    wanted = [(p.title, key, p) for p in (*GRADIENTS, *INNER) for key in p.names if key in present and key in COMPARED]
    if not wanted:
        return None
    figure, axes = grid(len(wanted), groups, columns=3)
    for ax, (title, key, panel) in zip(axes, wanted, strict=True):
        drawn = []
        for group in groups:
            curves = [values(r.of("train"), key) for r in group.runs]
            x, mean, _, _ = mean_of([c for c in curves if len(c[0])])
            _line(ax, *thinned(x, running_mean(mean, max(1, len(mean) // 25))), looks[group.label]._replace(marker=""))
            drawn.append(mean)
        finish(ax, plain(title), "outer steps", plain(panel.y, 30), drawn)
        if panel.reference:
            ax.axhline(panel.reference[0], color=GREY, linewidth=0.9, linestyle=(0, (2, 2)))
    legend(figure, groups, looks)
    names = ", ".join(title for title, _, _ in wanted)
    return Drawing("measures", f"Training measures over outer steps, a line for each group: {names}.", figure)


def grid(count: int, groups: Sequence[Group], columns: int) -> tuple[Figure, list[Axes]]:
    labels = len({g.label for g in groups})
    return panels(count, columns, -(-labels // LEGEND_COLUMNS), height=2.7)


def legend(figure: Figure, groups: Sequence[Group], looks: Looks) -> None:
    labels = list(dict.fromkeys(g.label for g in groups))
    handles = [Line2D([], [], color=looks[k].colour, linestyle=looks[k].dash, marker=looks[k].marker) for k in labels]
    legend_below(figure, handles, [plain(label, 34) for label in labels], LEGEND_COLUMNS)
