"""Figures of one run: learning and adaptation, and small panels of logged metrics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from metarun.report.figures import drawing
from metarun.report.figures.chart import Chart, chart_line
from metarun.report.figures.drawing import Curve, Drawing, describe_curve, finish, look, panels, plain
from metarun.report.figures.panels import PARTS, PENALTIES, Panel, families, family_labels, is_profile, reference_of
from metarun.report.read import facts
from metarun.report.read.files import Record
from metarun.report.read.runs import Run
from metarun.storage.text import axis_label, count, display_scale, is_number, number

VALIDATION, TRAINING, LOSS = look(1), look(0), look(2)
MAX_PANELS = 24  # of a figure
ROUNDING = 1e-6  # relative
FRACTIONS = (0.0, 0.1, 0.3, 0.6, 1.0)  # of the records, at which profiles along the inner loop are drawn


def draw_learning(run: Run) -> Drawing | None:
    """Training loss; training and validation metric with the validation's interval. None without either."""
    train, validation = run.of("train"), facts.validation_curve(run)
    if not train and not validation:
        return None
    metric = facts.metric_of(run)
    size = f", {facts.episode_size(run, 'train_')}" if "train_shots" in run.summary else ""
    figure, (left, right) = panels(2, columns=2, height=3.0)
    steps, losses = facts.series(train, "loss")
    drawing.plot_noisy(left, steps, losses, TRAINING)
    finish(left, "Training loss", "outer steps", "query loss after adaptation", [losses])
    at, scores = facts.series(train, metric)
    scores = scores * display_scale(metric)
    if len(at):
        drawing.plot_noisy(right, at, scores, TRAINING, plain(f"training tasks{size}"))
    x, mean, half = (validation.get(key, np.zeros(0)) for key in ("step", "mean", "ci95"))
    if len(x):
        drawing.plot_band(right, x, mean, mean - half, mean + half, VALIDATION, "validation, 95 % interval")
        best = run.summary.get("best_step")
        if is_number(best) and best in x:
            drawing.mark_x(right, best, f"best, step {count(best)}")
    finish(right, "Training and validation", "outer steps", plain(axis_label(metric)), [scores, mean])
    if len(at) or len(x):
        right.legend()
    curves = {"Training loss": (steps, losses), f"Training {metric}": (at, scores), f"Validation {metric}": (x, mean)}
    text = " ".join(describe_curve(name, curve) for name, curve in curves.items())
    label, best = axis_label(metric), run.summary.get("best_step")
    band = chart_line("validation", (x, mean), VALIDATION, low=mean - half, high=mean + half)
    both = [chart_line(f"training tasks{size}", (at, scores), TRAINING, noisy=True), band]
    charts = (
        Chart(
            "Training loss", "outer steps", "query loss", [chart_line("training loss", (steps, losses), TRAINING, True)]
        ),
        Chart("Training and validation", "outer steps", label, both, [(best, "best")] if is_number(best) else ()),
    )
    return Drawing("learning", text, figure, charts)


def draw_adaptation(run: Run) -> Drawing | None:
    """Test metric and query loss after each adaptation step; None for a learner without steps."""
    curve, metric, unit = facts.test_curve(run), facts.metric_of(run), facts.step_unit(run)
    if len(curve.get("step", ())) < 2:
        return None
    figure, (left, right) = panels(2, columns=2, height=3.0)
    x, mean, half = curve["step"], curve["mean"], curve["ci95"]
    drawing.plot_band(left, x, mean, mean - half, mean + half, VALIDATION)
    reported, trained = run.summary.get("headline_step"), facts.setting(run, "algo.inner_steps")
    words = {reported: "reported"} if reported == trained else {trained: "steps in training", reported: "reported"}
    for at, (step, text) in enumerate(words.items()):
        if is_number(step) and step in x:
            drawing.mark_x(left, step, f"{text}: {step}", at)
    if left.get_legend_handles_labels()[1]:
        left.legend()
    finish(left, "Test metric, 95 % interval over tasks", unit, plain(axis_label(metric)), [mean])
    right.plot(x, curve["loss"], color=LOSS.colour, marker=LOSS.marker)
    drawing.mark_nonfinite(right, x, curve["loss"])
    finish(right, "Query loss at test", unit, "loss", [curve["loss"]])
    texts = [describe_curve(f"Test {metric} over {unit}", (x, mean)), describe_curve("Query loss", (x, curve["loss"]))]
    marks = [(step, text) for step, text in words.items() if is_number(step)]
    tested = chart_line(f"test {metric}", (x, mean), VALIDATION, low=mean - half, high=mean + half)
    charts = (
        Chart("Test metric, 95 % interval over tasks", unit, axis_label(metric), [tested], marks),
        Chart("Query loss at test", unit, "loss", [chart_line("query loss", (x, curve["loss"]), LOSS)]),
    )
    return Drawing("adaptation", " ".join(texts), figure, charts)


def draw_panels(name: str, records: Sequence[Record], wanted: Sequence[Panel]) -> tuple[Drawing | None, str]:
    """Draw those of the panels that the records have metrics for, as one figure; the text names constant metrics."""
    present = set(facts.metric_names(records))
    found = [(p, {label: facts.series(records, k) for k, label in p.names.items() if k in present}) for p in wanted]
    constant = [(panel, curves) for panel, curves in found if curves and all(map(never_changes, curves.values()))]
    moving = [pair for pair in found if pair[1] and pair not in constant]
    sentences = []
    for panel, curves in constant:  # `outer learning rate 0.001`, or `distance moved (body 0.1, head 0.2)`
        values = {label: number(float(y[0])) for label, (_, y) in curves.items()}
        several = f"({', '.join(f'{label} {value}' for label, value in values.items())})"
        sentences.append(f"{panel.title.lower()} {several if len(values) > 1 else next(iter(values.values()))}")
    text = f"Constant: {'; '.join(sentences)}." if sentences else ""
    if len(moving) > MAX_PANELS:
        text += f" {len(moving) - MAX_PANELS} more metrics are in metrics.jsonl."
    if not moving:
        return None, text
    figure, axes = panels(min(len(moving), MAX_PANELS))
    texts, charts = [], []
    for (panel, curves), ax in zip(moving, axes, strict=False):
        for at, (label, (x, y)) in enumerate(curves.items()):
            drawing.plot_noisy(ax, x, y, look(at), plain(label))
            texts.append(describe_curve(f"{panel.title}, {label}", (x, y)))
        finish_panel(ax, panel, [y for _, y in curves.values()])
        if len(curves) > 1 or panel.reference:
            ax.legend()
        series = [chart_line(label, curve, look(at), noisy=True) for at, (label, curve) in enumerate(curves.items())]
        charts.append(Chart(panel.title, "outer steps", panel.y, series, (), reference_of(panel)))
    return Drawing(name, " ".join(texts), figure, charts), text.strip()


def never_changes(curve: Curve) -> bool:
    """Whether three or more records have the same finite number, up to rounding."""
    y = curve[1]
    return len(y) > 2 and bool(np.isfinite(y).all() and np.ptp(y) <= ROUNDING * np.abs(y).max())


def finish_panel(axes: Axes, panel: Panel, shown: Sequence[np.ndarray]) -> None:
    """Set the reference, title and scale of a panel."""
    if panel.reference:
        value, label = panel.reference
        axes.axhline(value, color=drawing.GREY, linewidth=0.9, linestyle=(0, (2, 2)), label=label)
        shown = [*shown, np.array([value])]
    finish(axes, plain(panel.title), "outer steps", plain(panel.y, 30), shown)


def draw_layers(name: str, records: Sequence[Record], penalties: bool = False) -> Drawing | None:
    """Draw a panel for each family of metrics by layer, one line a layer; or for each of those of penalties."""
    found = families(facts.metric_names(records)).items()
    groups = {k: v for k, v in found if not is_profile(v) and (k in PENALTIES) == penalties}
    if not groups:
        return None
    figure, axes = panels(min(len(groups), MAX_PANELS), columns=2, height=3.0)
    for (prefix, members), ax in zip(groups.items(), axes, strict=False):
        curves = {PARTS.get(part, part): facts.series(records, m) for part, m in members.items()}
        drawing.plot_family(ax, curves, "lines" if penalties else "layers")
        title, y = family_labels(prefix)
        finish(ax, plain(title), "outer steps", plain(y, 30), [y for _, y in curves.values()])
        ax.legend(fontsize=6.5)
    what = "parts" if penalties else "layers"
    texts = [f"{prefix} of {len(members)} {what} over outer steps." for prefix, members in groups.items()]
    return Drawing(name, " ".join(texts), figure)


def draw_profiles(name: str, records: Sequence[Record]) -> Drawing | None:
    """Draw a panel for each family of metrics along the inner loop: at a few outer steps, value against inner step."""
    groups = {k: v for k, v in families(facts.metric_names(records)).items() if is_profile(v)}
    if not groups:
        return None
    first = {next(iter(members.values())) for members in groups.values()}
    having = [r for r in records if not first.isdisjoint(r)]
    picked = [having[at] for at in sorted({round(f * (len(having) - 1)) for f in FRACTIONS})]
    colours = drawing.shades(len(picked))
    figure, axes = panels(min(len(groups), MAX_PANELS), legend=len(picked))
    texts = []
    for (prefix, members), ax in zip(groups.items(), axes, strict=False):
        x, names = np.array([int(part) for part in members]), members.values()
        rows = [np.array([r[m] if is_number(r.get(m)) else np.nan for m in names], dtype=float) for r in picked]
        for at, (y, colour) in enumerate(zip(rows, colours, strict=True)):
            ax.plot(x, y, color=colour, marker=drawing.MARKERS[at], markersize=3)
        title, unit = family_labels(prefix)
        finish(ax, plain(title), "inner steps", plain(unit, 30), rows)
        step = picked[-1]["step"]
        texts.append(describe_curve(f"{prefix} along the inner loop at outer step {step}", (x, rows[-1])))
    handles = [Line2D([], [], color=c, marker=drawing.MARKERS[at], markersize=3) for at, c in enumerate(colours)]
    drawing.legend_below(figure, handles, [f"outer step {record['step']}" for record in picked])
    return Drawing(name, " ".join(texts), figure)
