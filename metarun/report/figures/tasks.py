"""Single test tasks of a run: fitted functions, predicted values, episodes of images, and their features."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from metarun.report.figures.drawing import (
    COLOURS,
    GREY,
    MARKERS,
    Drawing,
    finish,
    legend_below,
    look,
    panels,
    plain,
)  # fmt: skip
from metarun.storage.text import count_nouns, format_metric, is_number

MAX_TASKS = 6
RIGHT, WRONG = "#009E73", "#D55E00"
CELL, LABEL, TITLE = 0.62, 1.75, 0.7  # inches: a picture with its margin, class names, a title
WORDS = 0.2  # inches below a picture
MOST_COLUMNS, MOST_ROWS = 13, 10  # of an episode
MOST_POINTS, MOST_CLASSES = 2000, 20  # of a map of features
STEP_LINES = ((GREY, ":"), (COLOURS[4], "--"), (COLOURS[0], "-"))  # before, after one step, as reported

Task = Mapping[str, Any]


def task_title(task: Task, error: str = "") -> str:
    return f"Test task {task.get('task')}, {task.get('which')}" + (f": {error}" if error else "")


def episode_title(task: Task) -> str:
    accuracy = task.get("accuracy")
    return task_title(task, f"accuracy {100 * accuracy:.1f} %" if is_number(accuracy) else "")


def short_names(classes: Sequence[Any]) -> list[str]:
    """The names of classes without the folders that all of them are in."""
    parts = [str(name).split("/") for name in classes]
    shared = 0
    while all(len(own) > shared + 1 and own[shared] == parts[0][shared] for own in parts):
        shared += 1
    return ["/".join(own[shared:]) for own in parts]


def _errors(tasks: Sequence[Task], scores: Any, metric: str) -> list[str]:
    """The reported metric of each task, in words; empty where it is not known."""
    found = []
    for task in tasks:
        at = task.get("task")
        known = scores is not None and isinstance(at, int) and 0 <= at < len(scores)
        found.append(f"{plain(metric.upper() if metric == 'mse' else metric)} "
                     f"{format_metric(metric, float(scores[at]))}" if known else "")  # fmt: skip
    return found


def draw_fits(stored: Mapping[str, Any], scores: Any, metric: str) -> Drawing:
    """A panel for each task: the function after 0, 1 and the reported number of steps, support points, targets."""
    tasks, x = list(stored["tasks"])[:MAX_TASKS], np.asarray(stored["x"], dtype=float)
    figure, axes = panels(len(tasks), columns=2, legend=len(stored["steps"]) + 2, height=2.8)
    errors = _errors(tasks, scores, metric)
    for task, ax, error in zip(tasks, axes, errors, strict=True):
        _draw_fit(ax, x, task, stored["steps"])
        x_name, y_name = _axis_names(stored)
        finish(ax, task_title(task, error), x_name, y_name)
    legend_below(figure, *axes[0].get_legend_handles_labels())
    texts = "; ".join(task_title(task, error) for task, error in zip(tasks, errors, strict=True))
    return Drawing("tasks", f"Fitted functions before and after adaptation. {texts}.", figure)


def _draw_fit(ax: Axes, x: np.ndarray, task: Task, steps: Sequence[int]) -> None:
    at, targets = (np.asarray(task[key], dtype=float) for key in ("query_x", "targets"))
    order = np.argsort(at)
    ax.plot(at[order], targets[order], ".", color="#9a9a9a", markersize=3.5, label="true values (queries)")
    lines = STEP_LINES if len(steps) == 3 else (STEP_LINES[0], STEP_LINES[2]) if len(steps) == 2 else STEP_LINES[2:]
    for values, step, (colour, dash) in zip(task["predicted"], steps, lines, strict=True):
        after = f"after {count_nouns(step, 'step')}" if step else "before adaptation"
        label = after if len(steps) > 1 else "predicted"
        ax.plot(x, np.asarray(values, dtype=float), color=colour, linestyle=dash, linewidth=1.6, label=label)
    ax.plot(*np.asarray(task["support"], dtype=float), "o", color="black", markersize=4.5, label="support")
    y = np.concatenate([targets, np.asarray(task["support"][1], dtype=float)])
    fitted = np.asarray(task["predicted"][-1], dtype=float)
    fitted = fitted[np.isfinite(fitted)]
    margin = max(0.25 * float(np.ptp(y)), 0.1)
    # What was adapted stays in the panel, as far as it is within the range of the points on either side of them.
    room = max(float(np.ptp(y)), 1.0)
    low, high = float(y.min()), float(y.max())
    if len(fitted):
        low, high = max(min(low, fitted.min()), low - room), min(max(high, fitted.max()), high + room)
    ax.set_ylim(low - margin, high + margin)


def _axis_names(stored: Mapping[str, Any]) -> tuple[str, str]:
    names = stored.get("names") or {}
    x, y = ((names.get(axis) or [axis])[0] for axis in ("x", "y"))
    return plain(x), plain(y)


def draw_values(stored: Mapping[str, Any], scores: Any, metric: str) -> Drawing:
    """A panel for each task: predicted against true values of the queries, before and after adaptation."""
    tasks, steps = list(stored["tasks"])[:MAX_TASKS], stored["steps"]
    figure, axes = panels(len(tasks), columns=4, legend=len(steps) + 1, height=2.7)
    errors = _errors(tasks, scores, metric)
    name = _axis_names(stored)[1]
    for task, ax in zip(tasks, axes, strict=True):
        targets = np.asarray(task["targets"], dtype=float)
        picked = ((0, steps[0], GREY, "x"), (len(steps) - 1, steps[-1], COLOURS[0], "o"))[-min(2, len(steps)) :]
        for at, step, colour, marker in picked:
            after = f"after {count_nouns(step, 'step')}" if step else "before adaptation"
            label = after if len(steps) > 1 else "predicted"
            values = np.asarray(task["predicted"][at], dtype=float)
            ax.plot(targets, values, marker, color=colour, markersize=3.5, alpha=0.8, label=label)
        ends = [float(targets.min()), float(targets.max())]
        ax.plot(ends, ends, color=GREY, linewidth=0.9, linestyle="--", label="exact")
        finish(ax, f"Task {task.get('task')}, {task.get('which')}", f"true {name}", f"predicted {name}")
    legend_below(figure, *axes[0].get_legend_handles_labels())
    texts = "; ".join(task_title(task, error) for task, error in zip(tasks, errors, strict=True))
    return Drawing("tasks", f"Predicted against true values. {texts}.", figure)


def draw_episode(task: Task) -> Drawing | None:
    """A row for each class: its support pictures, its queries, and below each query what it was taken for. A frame is
    green and whole where that is right, orange and dashed where it is wrong. None without pictures."""
    if "shape" not in task:
        return None
    shape, classes = tuple(int(n) for n in task["shape"]), short_names(task["classes"][:MOST_ROWS])
    support, queries = task["support"], task["queries"]
    shots = min(MOST_COLUMNS - 1, max(support["class"].count(n) for n in range(len(classes))))
    most = max(1, MOST_COLUMNS - shots)
    columns = min(most, max(queries["class"].count(n) for n in range(len(classes))))
    width = LABEL + (shots + columns) * CELL + 0.25
    height = TITLE + len(classes) * (CELL + WORDS)
    figure = Figure(figsize=(width, height))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    ax.text(0.06, height - 0.16, episode_title(task), fontsize=9)
    ax.text(LABEL, height - 0.42, "support", fontsize=8, weight="bold")
    ax.text(
        LABEL + shots * CELL + 0.2, height - 0.42, "queries, and what each was taken for", fontsize=8, weight="bold"
    )
    for n, name in enumerate(classes):
        foot = height - TITLE - (n + 1) * (CELL + WORDS) + WORDS
        ax.text(0.06, foot + CELL / 2, f"{n + 1}  {plain(name, 24)}", fontsize=7, va="center")
        for column, k in enumerate([k for k, own in enumerate(support["class"]) if own == n][:shots]):
            _place(ax, support["pixels"][k], shape, LABEL + column * CELL, foot, "#888888", "-")
        own = [k for k, label in enumerate(queries["class"]) if label == n]
        wrong_first = sorted(own, key=lambda k: queries["predicted"][k] == n)[:columns]
        for column, k in enumerate(wrong_first):
            taken, share = queries["predicted"][k], float(queries["probability"][k])
            right = taken == n
            left = LABEL + (shots + column) * CELL + 0.2
            _place(ax, queries["pixels"][k], shape, left, foot, RIGHT if right else WRONG, "-" if right else "--")
            words = f"{100 * share:.0f} %" if right else f"\N{MULTIPLICATION SIGN} {taken + 1}, {100 * share:.0f} %"
            ax.text(left + (CELL - 0.06) / 2, foot - 0.11, words, fontsize=6, ha="center", va="center",
                    color="black" if right else WRONG)  # fmt: skip
    wrong = sum(p != c for p, c in zip(queries["predicted"], queries["class"], strict=True))
    alt = f"{episode_title(task)}; {wrong} of {len(queries['class'])} shown queries wrong."
    return Drawing(f"episode_{task.get('which')}", alt, figure)


def _place(ax: Axes, coded: str, shape: tuple[int, ...], left: float, foot: float, colour: str, dash: str) -> None:
    pixels = np.frombuffer(base64.b64decode(coded), dtype=np.uint8).reshape(shape)
    side = CELL - 0.06
    shown = np.repeat(pixels, 3, axis=-1) if shape[2] == 1 else pixels
    ax.imshow(shown, extent=(left, left + side, foot, foot + side), interpolation="nearest", aspect="auto")
    frame = Rectangle((left, foot), side, side, fill=False, edgecolor=colour, linestyle=dash, linewidth=1.6)
    ax.add_patch(frame)


def draw_embedding(tasks: Sequence[Task]) -> Drawing | None:
    """The features of episodes by their first two principal components; None for learners without."""
    shown = [task for task in tasks if isinstance(task.get("embedding"), Mapping)][-2:]
    if not shown:
        return None
    figure, axes = panels(len(shown), columns=2, height=3.9)
    for ax, task in zip(axes, shown, strict=True):
        found = task["embedding"]
        support, queries = (np.asarray(found[key], dtype=float)[:MOST_POINTS] for key in ("support", "queries"))
        for n, name in enumerate(short_names(task["classes"])[:MOST_CLASSES]):
            own = look(n)
            inside = np.asarray(found["query_class"])[:MOST_POINTS] == n
            ax.plot(*queries[inside].T, MARKERS[n % 8], color=own.colour, markersize=4, alpha=0.6, linestyle="")
            mine = support[np.asarray(found["support_class"])[:MOST_POINTS] == n]
            ax.plot(*mine.T, MARKERS[n % 8], color=own.colour, markersize=8, markeredgecolor="black", linestyle="",
                    label=f"{n + 1}  {plain(name, 20)}")  # fmt: skip
            centre = mine.mean(0) if len(mine) > 1 else np.full(2, np.nan)
            ax.plot(*centre, "+", color="black", markersize=11, markeredgewidth=1.5)
        explained = [f"{100 * float(share):.0f} %" for share in found["explained"]]
        finish(ax, task_title(task), f"component 1 ({explained[0]} of variance)", f"component 2 ({explained[1]})")
        ax.legend(fontsize=6, ncols=2 if len(task["classes"]) > 5 else 1)
    texts = " ".join(f"{task_title(task)}: {len(task['classes'])} classes." for task in shown)
    return Drawing("features", f"Features of support and queries in two dimensions. {texts}", figure)
