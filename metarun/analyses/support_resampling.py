r"""Support resampling: the same test tasks, classes and queries with other support sets.

An episode is drawn with R K shots, and its support set is cut into R disjoint sets of K shots; the learner adapts to
each and is scored on the same queries. In x_tr = mu + b_t + e_tr the spread between the draws of a task, var e, is what
the choice of examples does; var b, between tasks, is how classes and queries differ (report/statistics/variance.py).
Symbols: T tasks, R draws, x_tr the score of task t after draw r. The learner is deterministic, so e_tr has no other
source. One draw per task, as in an ordinary test, has both in its interval: 1.96 sqrt((var b + var e) / T).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metarun.analyses.analysis import Cell, Context, Row, mask_diverged, require_at_least
from metarun.errors import SettingError, UserError, require
from metarun.report.figures.drawing import COLOURS, GREY, Drawing, finish
from metarun.report.statistics.variance import nested_components
from metarun.storage.text import axis_label, count_nouns, display_scale, format_metric, higher_is_better
from metarun.training.evaluation import EPISODE_SEED, adaptation_curves
from metarun.training.experiment import Experiment
from metarun.types import Batch, Dataset, EpisodeSpec, Task

FEW = 5
"""Queries of a class: if classes are small, draws are reduced before queries are reduced below this number."""


@dataclass(frozen=True)
class SupportResampling:
    tasks: int
    draws: int
    queries: int | None

    def __post_init__(self) -> None:
        require_at_least(self, tasks=2, draws=2)
        require(self.queries is None or self.queries >= 1, "queries", self.queries, "must be at least 1, or null")

    def cells(self, context: Context) -> Sequence[Cell]:
        """One cell per task."""
        draws, queries = self.choose_sizes(context.run.experiment)
        return [{"task": i, "draws": draws, "queries": queries} for i in range(self.tasks)]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        experiment, learner = context.run.experiment, context.run.learner
        spec = experiment.test_spec._replace(queries=cell["queries"])
        task = experiment.placement.move_task(resample_support(experiment.dataset, cell["task"], spec, cell["draws"]))
        chunk = experiment.placement.evaluation_chunk(spec, experiment.dataset.input_shape())
        curves = adaptation_curves(learner, context.run.params, task, (learner.test_inner_steps,), chunk)
        scores = mask_diverged(*curves)[:, -1].double()
        ends = {"lowest": float(scores.min()), "highest": float(scores.max())}
        return {"mean": float(scores.mean()), "sd": float(scores.std()), **ends, "scores": scores.tolist()}

    def choose_sizes(self, experiment: Experiment) -> tuple[int, int]:
        """The draws and the queries of a class: as set, or the most that the test classes hold.

        All draws with as many queries as possible come first, then fewer draws, then fewer queries than `FEW`.
        """
        dataset, spec = experiment.dataset, experiment.test_spec
        few = self.queries or min(spec.queries, FEW)
        sizes = [(self.draws, q) for q in range(self.queries or spec.queries, few, -1)]
        sizes += [(draws, few) for draws in range(self.draws, 1, -1)]
        sizes += [(2, q) for q in range(few - 1, 0, -1)] if self.queries is None else []
        reason = ""
        for draws, queries in sizes:
            try:
                dataset.check("test", _with_draws(spec._replace(queries=queries), draws))
                return draws, queries
            except SettingError as error:
                reason = reason or error.expected
        setting = f"analysis.draws={self.draws}: not even two support sets of {spec.shots} shots fit beside the queries"
        raise UserError(f"{setting} ({reason}); choose fewer data.shots or analysis.queries")

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        loss, cell = context.run.experiment.tested.loss, rows[0]
        finite = [r for r in rows if r["sd"] is not None]
        summary = {"metric": loss.metric, "draws": cell["draws"], "queries": cell["queries"], "tasks": len(finite)}
        summary["not_finite"] = len(rows) - len(finite)
        if len(finite) < 2:
            return summary | {"message": f"adaptation diverged on {summary['not_finite']} of {len(rows)} tasks"}
        found = nested_components([r["scores"] for r in finite])
        worst = np.mean([r["lowest" if loss.higher_is_better else "highest"] for r in finite])
        summary |= {
            "mean": found.mean,
            "sd_tasks": found.between**0.5,
            "sd_support": found.within**0.5,
            "share_support": found.share,
            "share_interval": [found.low, found.high],
            "worst_draw": float(worst),
        }
        return summary | {"message": _describe(summary)}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        """Left each task's scores over its support sets, sorted by their mean; right the two standard deviations."""
        metric, drawn = summary["metric"], Figure(figsize=(9.2, 2.9))
        scale = display_scale(metric)
        left, right = (drawn.add_axes((x, 0.17, w, 0.7)) for x, w in ((0.075, 0.6), (0.8, 0.18)))
        finite = sorted((r for r in rows if r["sd"] is not None), key=lambda r: r["mean"])
        scores = scale * np.array([r["scores"] for r in finite]).reshape(len(finite), -1)
        if len(scores):
            tasks, ends = np.arange(len(scores)), (scores.min(1), scores.max(1))
            left.vlines(tasks, *ends, color=COLOURS[5], linewidth=1.4, label="worst to best support set")
            left.plot(tasks, scores.mean(1), "o", color=COLOURS[0], markersize=2.6, label="mean of the task")
            left.legend(loc="lower right" if higher_is_better(metric) else "upper left")
        title = f"{summary['draws']} support sets of each task, the same queries"
        finish(left, title, "test tasks, sorted by their mean", axis_label(metric), [scores])
        if "sd_support" in summary:
            parts = {"tasks": summary["sd_tasks"], "support\nsets": summary["sd_support"]}
            right.bar(list(parts), [scale * v for v in parts.values()], color=[COLOURS[0], COLOURS[5]], width=0.6)
            for x, value in enumerate(parts.values()):
                above: dict[str, Any] = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center"}
                text = format_metric(metric, value, unit=False)
                right.annotate(text, (x, scale * value), fontsize=7, color=GREY, **above)
            right.set(title="standard deviation", ylabel=axis_label(metric))
            right.grid(False, axis="x")
            right.set_axisbelow(True)
            right.set_ylim(0, 1.15 * scale * max(parts.values()) or 1)
        alt = f"Test {metric} of {len(finite)} tasks over {summary['draws']} support sets each. {summary['message']}"
        return [Drawing("support_resampling", alt, drawn)]


def resample_support(dataset: Dataset, index: int, spec: EpisodeSpec, draws: int) -> Task:
    """Test task `index` with R disjoint support sets and the same queries, as R tasks [R, ...]."""
    drawn = dataset.episodes("test", EPISODE_SEED, 0, range(index, index + 1), _with_draws(spec, draws))
    # Rows are ordered shot by shot, so that consecutive rows are a support set with as many of every class.
    support = (part[0].reshape(draws, -1, *part.shape[2:]) for part in drawn.support)
    query = (part.expand(draws, *part.shape[1:]) for part in drawn.query)
    return Task(Batch(*support), Batch(*query))


def _with_draws(spec: EpisodeSpec, draws: int) -> EpisodeSpec:
    return spec._replace(shots=spec.shots * draws)


def _describe(summary: dict[str, Any]) -> str:
    low, high = summary["share_interval"]
    queries = count_nouns(summary["queries"], "query", "queries")
    names = ("mean", "worst_draw", "sd_tasks", "sd_support")
    mean, worst, sd_tasks, sd_support = (format_metric(summary["metric"], summary[name]) for name in names)
    lines = [
        f"{summary['draws']} support sets for each of {summary['tasks']} tasks, {queries}: "
        f"{mean} on average, {worst} with the worst support set of each task",
        f"standard deviation between tasks {sd_tasks}, between support sets of a task {sd_support}: the choice of "
        f"support set explains {summary['share_support']:.0%} of the variance ({low:.0%} to {high:.0%})",
    ]
    if summary["not_finite"]:
        lines.append(
            f"left out: {count_nouns(summary['not_finite'], 'task')} on which adaptation diverged after some draw"
        )
    return "\n".join(lines)
