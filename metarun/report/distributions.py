"""What a run predicted beside its figure: functions with their bands, coverage, and the best possible predictor's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from metarun.report.drawing import GREY, Drawing, finish, legend_below, look, panels
from metarun.report.facts import component, episode_size, metric_of
from metarun.report.groups import Group
from metarun.report.read import Run
from metarun.report.results import interval_of
from metarun.report.table import Table
from metarun.report.text import NOTHING, count, figure, is_number, metric_name

TEXT = (
    "Test tasks: the mean and the central 95 % band that were predicted from the context points, draws of what is "
    "latent where the learner has such (thin), and mean and band of the exact posterior where it is known (dashed)."
)
MOST = 6  # tasks that are drawn
BAND = 1.96
WORDS = {
    "pointwise_log_likelihood": "log-likelihood of single targets",
    "joint_log_likelihood": "log-likelihood of all targets together",
    "context_log_likelihood": "log-likelihood of the context",
    "elbo": "ELBO",
    "mse": "MSE of the mean",
}


def has_some(run: Run) -> bool:
    return bool(run.functions or run.summary.get("beside") or run.summary.get("oracle"))


def draw(run: Run) -> Drawing | None:
    """A panel for each task; None where no functions were kept."""
    if not run.functions:
        return None
    x, tasks = np.asarray(run.functions["x"], dtype=float), list(run.functions["tasks"])[:MOST]
    drawn, axes = panels(len(tasks), columns=2, legend=8, height=2.8)
    for at, (task, ax) in enumerate(zip(tasks, axes, strict=True)):
        draw_task(ax, x, task)
        finish(ax, f"Test task {at}", "x", "y")
        keep_in_view(ax, task)
    handles, labels = axes[0].get_legend_handles_labels()
    legend_below(drawn, handles, labels)
    off = [float(np.mean(np.asarray(task["deviation"], dtype=float))) for task in tasks]
    said = ", ".join(f"{v:.3g}" for v in off)
    return Drawing("functions", f"Predicted functions of {len(tasks)} test tasks; mean deviations {said}.", drawn)


def draw_task(ax: Axes, x: np.ndarray, task: Mapping[str, Any]) -> None:
    own = look(0)
    mean, deviation = (np.asarray(task[key], dtype=float) for key in ("mean", "deviation"))
    ax.fill_between(
        x,
        mean - BAND * deviation,
        mean + BAND * deviation,
        color=own.colour,
        alpha=0.18,
        linewidth=0,
        label="95 % band",
    )
    draws = np.asarray(task["draws"], dtype=float)
    if np.ptp(draws, axis=0).max() > 0:
        for at, row in enumerate(draws):
            label = "" if at else "draws of what is latent"
            ax.plot(x, row, color=own.colour, linewidth=0.5, alpha=0.6, label=label)
    ax.plot(x, mean, color=own.colour, linewidth=1.6, label="predicted mean")
    if "oracle_mean" in task:
        best, around = (np.asarray(task[key], dtype=float) for key in ("oracle_mean", "oracle_deviation"))
        ax.plot(x, best, color=GREY, linestyle="--", linewidth=1.1, label="exact posterior, 95 %")
        for side in (-BAND, BAND):
            ax.plot(x, best + side * around, color=GREY, linestyle=(0, (2, 2)), linewidth=0.8)
    targets, context = (np.asarray(task[key], dtype=float) for key in ("targets", "context"))
    ax.plot(*targets, ".", color=look(1).colour, markersize=3, label="targets")
    ax.plot(*context, "o", color="black", markersize=4, label="context")


def keep_in_view(ax: Axes, task: Mapping[str, Any]) -> None:
    """What the points need, with room: a band that is far wider says so by leaving the panel."""
    y = np.concatenate([np.asarray(task[key], dtype=float)[1] for key in ("targets", "context")])
    room = max(0.6 * float(np.ptp(y)), 0.1)
    ax.set_ylim(float(y.min()) - room, float(y.max()) + room)


def tables(run: Run) -> tuple[Table, ...]:
    """The test's further figures, and those of the best possible predictor."""
    own, best = _figures_of(run), _figures(run.summary.get("oracle"))
    names = [*own, *(name for name in best if name not in own)]
    rows = tuple((words(name), _cell(name, own.get(name)), _cell(name, best.get(name))) for name in names)
    note = f"± is half of a 95 % interval over {count(run.summary.get('n_tasks'))} tasks."
    if not best:
        return (Table("On the test tasks", ("figure", "this run"), tuple(row[:2] for row in rows), note),)
    note += " Best possible: the exact posterior, told what the tasks were drawn with."
    return (Table("On the test tasks", ("figure", "this run", "best possible"), rows, note),)


def _figures(found: Any) -> dict[str, Mapping[str, Any]]:
    return {str(k): v for k, v in found.items() if isinstance(v, Mapping)} if isinstance(found, Mapping) else {}


SHOWN = ("pointwise_log_likelihood", "joint_log_likelihood", "mse", "coverage_50", "coverage_90", "coverage_95")


def side_by_side(groups: Sequence[Group]) -> tuple[Table, ...]:
    """The figures of groups that were tested on the same episodes, whatever metric each of them reports: a table for
    each set of episodes that a learner of distributions was tested on."""
    alike: dict[str, list[Group]] = {}
    for group in groups:
        alike.setdefault(str(group.runs[0].summary.get("episodes_sha256")), []).append(group)
    return tuple(_compared(same) for same in alike.values() if any(g.runs[0].summary.get("beside") for g in same))


def _compared(groups: Sequence[Group]) -> Table:
    rows = [(g.label, [_figures_of(run) for run in g.runs]) for g in groups]
    best = _figures(groups[0].runs[0].summary.get("oracle"))
    rows += [("best possible", [best])] if best else []
    names = [n for n in SHOWN if any(n in figures for _, several in rows for figures in several)]
    cells = tuple((label, *(_over_seeds(name, several) for name in names)) for label, several in rows)
    run = groups[0].runs[0]
    title = f"All figures, on the same test tasks: {component(run, 'data')} {episode_size(run)}"
    return Table(title, ("algorithm", *map(words, names)), cells, "± as in the table of results.")


def _figures_of(run: Run) -> dict[str, Mapping[str, Any]]:
    return {metric_of(run): run.summary, **_figures(run.summary.get("beside"))}


def _over_seeds(name: str, several: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    found = [figures[name] for figures in several if is_number(figures.get(name, {}).get("mean"))]
    if not found:
        return NOTHING
    over = interval_of([f["mean"] for f in found], found[0].get("ci95", math.nan))
    return _cell(name, {"mean": over.mean, "ci95": over.half})


def words(name: str) -> str:
    if name.startswith("coverage_"):
        return f"targets inside the {name.removeprefix('coverage_')} % band"
    return WORDS.get(name, metric_name(name))


def _cell(name: str, found: Mapping[str, Any] | None) -> str:
    if not found:
        return NOTHING
    return figure("accuracy" if name.startswith("coverage_") else name, found.get("mean"), found.get("ci95"))
