"""The curves of one run: learning and adaptation."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from metarun.report.figures.drawing import Drawing, finish, look, panels, plain
from metarun.report.figures.lines import mark, noisy, not_finite, with_band
from metarun.report.figures.metrics import described
from metarun.report.read.facts import (
    Point,
    adaptation,
    episode_size,
    metric_of,
    setting,
    validations,
    values,
)
from metarun.report.read.runs import Run
from metarun.storage.text import adaptation_unit, axis_label, count, display_scale, is_number

VALIDATION, TRAINING, LOSS = look(1), look(0), look(2)


def learning(run: Run) -> Drawing | None:
    """Training loss; training and validation figure with the validation's interval; None without either."""
    train, points = run.of("train"), validations(run)
    if not train and not points:
        return None
    metric, size = metric_of(run), episode_size(run, "train_") if "train_shots" in run.summary else ""
    figure, (left, right) = panels(2, columns=2, height=3.0)
    steps, losses = values(train, "loss")
    noisy(left, steps, losses, TRAINING)
    finish(left, "Training loss", "outer steps", "query loss after adaptation", [losses])
    at, scores = values(train, metric)
    scores = scores * display_scale(metric)
    if len(at):
        noisy(right, at, scores, TRAINING, plain(f"training tasks{f', {size}' if size else ''}"))
    _validation(right, run, points)
    shown = [scores, np.array([p.mean for p in points])]
    finish(right, "Training and validation", "outer steps", plain(axis_label(metric)), shown)
    if len(at) or points:
        right.legend()
    texts = [described("Training loss", (steps, losses)), described(f"Training {metric}", (at, scores))]
    return Drawing("learning", " ".join([*texts, _validation_text(metric, points)]), figure)


def _validation(axes: Axes, run: Run, points: list[Point]) -> None:
    if not points:
        return
    x, mean, half = (np.array([getattr(p, key) for p in points], dtype=float) for key in ("step", "mean", "half"))
    with_band(axes, x, mean, mean - half, mean + half, VALIDATION, "validation, 95 % interval")
    best = run.summary.get("best_step")
    if is_number(best) and best in x:
        mark(axes, best, f"best, step {count(best)}")


def _validation_text(metric: str, points: list[Point]) -> str:
    curve = (np.array([p.step for p in points], dtype=float), np.array([p.mean for p in points], dtype=float))
    return described(f"Validation {metric}", curve)


def adapting(run: Run) -> Drawing | None:
    """The test's figure and query loss after each adaptation step; None for a learner without steps."""
    curve, metric = adaptation(run), metric_of(run)
    if len(curve.get("step", ())) < 2:
        return None
    figure, (left, right) = panels(2, columns=2, height=3.0)
    x, mean, half = curve["step"], curve["mean"], curve["ci95"]
    with_band(left, x, mean, mean - half, mean + half, VALIDATION)
    _marked_steps(left, run, x)
    finish(
        left,
        "Test figure, 95 % interval over tasks",
        adaptation_unit(run.summary.get("kind")),
        plain(axis_label(metric)),
        [mean],
    )
    right.plot(x, curve["loss"], color=LOSS.colour, marker=LOSS.marker)
    not_finite(right, x, curve["loss"])
    finish(right, "Query loss at test", adaptation_unit(run.summary.get("kind")), "loss", [curve["loss"]])
    texts = [
        described(f"Test {metric} over {adaptation_unit(run.summary.get('kind'))}", (x, mean)),
        described("Query loss", (x, curve["loss"])),
    ]
    return Drawing("adaptation", " ".join(texts), figure)


def _marked_steps(axes: Axes, run: Run, steps: np.ndarray) -> None:
    used, trained = run.summary.get("headline_step"), setting(run, "algo.inner_steps")
    words = {used: "reported"} if used == trained else {trained: "steps in training", used: "reported"}
    for at, (step, text) in enumerate(words.items()):
        if is_number(step) and step in steps:
            mark(axes, step, f"{text}: {step}", at)
    if axes.get_legend_handles_labels()[1]:
        axes.legend()
