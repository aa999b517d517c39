"""The figures of inner_loops: a line of measures for each variant, and stability against the generalisation gap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from metarun.report.figures.drawing import COLOURS, GREY, Drawing, look, plain, spans_much
from metarun.storage.text import axis_label, display_scale

Rows = Sequence[dict[str, Any]]
CAP = 1000.0
"""Changes of loss that are drawn; some test tasks' adaptation blows up, and then the numbers have no bound."""


def draw_variants(rows: Rows, summary: dict[str, Any]) -> Drawing:
    """A line a variant, the first one on top; dots are seeds, bars Student's 95 % intervals over them."""
    told, metric = summary["variants"], summary["metric"]
    figure = Figure(figsize=(10.4, 2.0 + 0.76 * len(told)))
    figure.set_layout_engine("constrained")
    score, gap, change, distance, curvature, cost = figure.subplots(2, 3, sharey=True).ravel()
    name = axis_label(metric)
    _intervals(score, rows, told, "test", (f"Test {name}", f"{name} of new tasks, last weights"), display_scale(metric))
    _intervals(gap, rows, told, "gap", ("Generalisation gap", "loss on new tasks - on training tasks"))
    _marks(
        score, [_scaled(t["test_median"]["mean"], display_scale(metric)) for t in told], "D", COLOURS[3], "median task"
    )
    _intervals(change, rows, told, "change_median", ("Change of test losses", "change of the median task's query loss"))
    _marks(change, [t["change_sup"] for t in told], "^", COLOURS[1], "supremum over test tasks (>: beyond the axis)")
    _marks(change, [t["floor_median"]["mean"] for t in told], "|", GREY, "where only the seed changed")
    _intervals(distance, rows, told, "relative", ("Distance of the weights", "distance / norm of weights"))
    _marks(distance, [t["floor_relative"]["mean"] for t in told], "|", GREY, "")
    _intervals(curvature, rows, told, "rate_curvature", ("Inner rate x largest eigenvalue", "after training"))
    _cost(cost, told)
    gap.axvline(0, color=GREY, linewidth=0.8)
    curvature.axvline(
        2, color=COLOURS[3], linewidth=0.9, linestyle=(0, (5, 1.5)), label="stability limit of a quadratic"
    )
    score.set_ylim(len(told) - 0.5, -0.5)
    for left in (score, distance):
        left.set_yticks(range(len(told)), [_label(t) for t in told])
    for axes in (score, change, distance, curvature):
        _logarithmic(axes)
    _within(gap, rows, ("gap",))
    _within(score, rows, ("test", "test_median"), display_scale(metric))
    _capped(change, [t["change_sup"] for t in told])
    found = [
        pair
        for axes in (score, change, curvature, cost)
        for pair in zip(*axes.get_legend_handles_labels(), strict=True)
    ]
    named = {label: handle for handle, label in found}
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=3)
    said = " ".join(f"{t['name']}: {_value(t['test']['mean'])}." for t in told)
    return Drawing("variants", f"Test {metric} of each inner loop. {said}", figure)


def draw_scatter(rows: Rows, summary: dict[str, Any]) -> Drawing:
    """A point a variant and seed."""
    figure = Figure(figsize=(7.2, 3.6))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    for at, told in enumerate(summary["variants"]):
        found = [r for r in rows if r["variant"] == told["name"] and _known(r, "gap", "change_median")]
        shown = look(at)
        x, y = ([r[key] for r in found] for key in ("change_median", "gap"))
        axes.plot(x, y, shown.marker, color=shown.colour, markersize=6, label=plain(told["name"]) if found else None)
    known = [r["change_median"] for r in rows if _known(r, "gap", "change_median")]
    if spans_much([np.array(known)]) or (len(known) > 1 and max(known) > 5 * min(known) > 0):
        _logarithmic(axes)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set(xlabel="change of the median test task's query loss, one training task replaced")
    axes.set_ylabel("loss on new tasks - on training tasks")
    axes.set_title("Stability and generalisation gap, a point a seed")
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside right upper")
    return Drawing("gap", "Generalisation gap against the change of test losses on replacing a task.", figure)


def _intervals(axes: Axes, rows: Rows, told: Rows, key: str, words: tuple[str, str], scale: float = 1) -> None:
    """Seeds, their mean and its interval, of each variant; `words` are the title and the label below."""
    for y, one in enumerate(told):
        seeds = [scale * r[key] for r in rows if r["variant"] == one["name"] and _known(r, key)]
        label = {"seed": None, "mean": None} if y else {"seed": "one seed", "mean": "mean over seeds, 95 % interval"}
        axes.plot(seeds, [y] * len(seeds), ".", color=COLOURS[5], markersize=5, zorder=1, label=label["seed"])
        mean, half = one[key]["mean"], one[key]["half"]
        if mean is not None:
            half = scale * half if half is not None and np.isfinite(half) else 0
            axes.errorbar(scale * mean, y, xerr=half, fmt="o", color=COLOURS[0], capsize=3, label=label["mean"])
    axes.set_title(words[0])
    axes.set_xlabel(words[1])


def _marks(axes: Axes, values: Sequence[float | None], marker: str, colour: str, label: str) -> None:
    found = [(v, y) for y, v in enumerate(values) if v is not None]
    if found:
        size = 9 if marker == "|" else 4.5
        face = "white" if marker == "D" else colour
        x, y = zip(*found, strict=True)
        axes.plot(x, y, marker, color=colour, markersize=size, markerfacecolor=face, label=label or None)


def _cost(axes: Axes, told: Rows) -> None:
    """Evaluations per task of an outer step; what a training took beside them."""
    gradients, products = (np.array([t[k] for t in told]) for k in ("inner_gradients", "hessian_products"))
    axes.barh(range(len(told)), gradients, color=COLOURS[0], height=0.6, label="inner gradients")
    axes.barh(
        range(len(told)),
        products,
        left=gradients,
        color=COLOURS[4],
        height=0.6,
        label="Hessian products",
        hatch="//",
        edgecolor="white",
    )
    for y, one in enumerate(told):
        if one["cpu_seconds"] is not None:
            axes.text(gradients[y] + products[y], y, f" {one['cpu_seconds']:.1f} s", va="center", fontsize=7)
    axes.set_xlim(0, 1.25 * max(gradients + products))
    axes.set_title("Cost")
    axes.set_xlabel("evaluations per task and outer step; CPU s of a run")


def _logarithmic(axes: Axes) -> None:
    low, high = axes.dataLim.intervalx
    if not 0 < high < np.inf:  # nothing was drawn
        return
    axes.set_xscale("log", nonpositive="clip")
    subs = (1.0, 2.0, 5.0) if high < 300 * max(low, 1e-30) else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _capped(axes: Axes, sups: Sequence[float | None]) -> None:
    """An axis up to `CAP`, and an arrow at its end for what is beyond."""
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, CAP * 1e-7), min(high, CAP))
    for y, value in enumerate(sups):
        if value is not None and value > CAP:
            axes.plot(0.97, y, ">", color=COLOURS[1], transform=axes.get_yaxis_transform())


def _within(axes: Axes, rows: Rows, keys: Sequence[str], scale: float = 1) -> None:
    """Limits that the seeds need; an interval over few seeds may be many times as wide, and goes on outside."""
    values = np.array([scale * r[key] for key in keys for r in rows if _known(r, key)])
    if axes.get_xscale() == "log":
        values = np.log(values[values > 0])
    if len(values):
        room = 0.3 * max(float(np.ptp(values)), 1e-9 + 0.1 * float(np.abs(values).max()))
        ends = np.array([values.min() - room, values.max() + room])
        axes.set_xlim(*(np.exp(ends) if axes.get_xscale() == "log" else ends))


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else scale * value


def _label(told: dict[str, Any]) -> str:
    lost = f"\n{told['diverged']:.0%} of runs diverged" if told["diverged"] else ""
    return plain(told["name"]) + lost


def _known(row: dict[str, Any], *keys: str) -> bool:
    return all(row.get(k) is not None for k in keys)


def _value(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"
