r"""Support resampling: the same test tasks with other support sets, their classes and their queries staying.

An episode is drawn with R K shots, and its support set is cut into R disjoint sets of K shots; the learner adapts to
each and is scored on the same queries. In x_tr = mu + b_t + e_tr the spread between the draws of a task, var e, is what
the choice of examples does; var b, between tasks, is how classes and queries differ (metarun/statistics/nested.py).
Symbols: T tasks, R draws, x_tr the score of task t after draw r. The learner is deterministic, so e_tr has no other
source. One draw per task, as in an ordinary test, has both in its interval: 1.96 sqrt((var b + var e) / T).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metarun.analyses.context import Context, sound
from metarun.analyses.frame import Cell, Row
from metarun.analyses.resampling_figure import draw_resampling
from metarun.errors import SettingError, UserError, require
from metarun.report.figures.drawing import Drawing
from metarun.statistics.nested import nested_components
from metarun.storage.text import format_metric
from metarun.training.evaluation import EPISODE_SEED, adaptation_curves
from metarun.training.experiment import Experiment
from metarun.types import Batch, Dataset, EpisodeSpec, Task

FEW = 5  # queries of a class: where classes are small, fewer draws come before fewer queries than these


@dataclass(frozen=True)
class SupportResampling:
    tasks: int
    draws: int
    queries: int | None

    def __post_init__(self) -> None:
        for name in ("tasks", "draws"):
            require(getattr(self, name) >= 2, name, getattr(self, name), "must be at least 2")
        require(self.queries is None or self.queries >= 1, "queries", self.queries, "must be at least 1, or null")

    def cells(self, context: Context) -> Sequence[Cell]:
        """A task each."""
        draws, queries = self._sizes(context.own[0])
        return [{"task": i, "draws": draws, "queries": queries} for i in range(self.tasks)]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        experiment, params = context.own
        learner, place = context.learner, experiment.placement
        spec = experiment.test_spec._replace(queries=cell["queries"])
        task = place.move_task(resampled(experiment.dataset, cell["task"], spec, cell["draws"]))
        chunk = place.evaluation_chunk(spec, experiment.dataset.input_shape())
        found = adaptation_curves(learner, params, task, (learner.test_inner_steps,), chunk)
        scores = sound(*found)[:, -1].double()
        ends = {"lowest": float(scores.min()), "highest": float(scores.max())}
        return {"mean": float(scores.mean()), "sd": float(scores.std()), **ends, "scores": scores.tolist()}

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        loss, cell = context.own[0].tested.loss, rows[0]
        finite = [r for r in rows if r["sd"] is not None]
        facts = {"metric": loss.metric, "draws": cell["draws"], "queries": cell["queries"], "tasks": len(finite)}
        facts["not_finite"] = len(rows) - len(finite)
        if len(finite) < 2:
            return facts | {"message": f"adaptation diverged on {facts['not_finite']} of {len(rows)} tasks"}
        found = nested_components([r["scores"] for r in finite])
        worst = np.mean([r["lowest" if loss.higher_is_better else "highest"] for r in finite])
        values = {
            "mean": found.mean,
            "sd_tasks": found.between**0.5,
            "sd_support": found.within**0.5,
            "share_support": found.share,
            "share_interval": [found.low, found.high],
            "worst_draw": float(worst),
        }
        return facts | values | {"message": _said(facts, values)}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Drawing:
        return draw_resampling(rows, summary)

    def _sizes(self, experiment: Experiment) -> tuple[int, int]:
        """Draws and queries of a class: what is asked for, or the most that the test classes hold."""
        dataset, spec = experiment.dataset, experiment.test_spec
        refusal = ""
        for draws, queries in self._wishes(spec.queries):
            try:
                dataset.check("test", _joined(spec._replace(queries=queries), draws))
                return draws, queries
            except SettingError as error:
                refusal = refusal or error.expected
        asked = f"analysis.draws={self.draws}: not even two support sets of {spec.shots} shots fit beside the queries"
        raise UserError(f"{asked} ({refusal}); choose fewer data.shots or analysis.queries")

    def _wishes(self, queries: int) -> Iterator[tuple[int, int]]:
        """All draws with as many queries as may be, then fewer draws, then fewer queries than `FEW`."""
        few = self.queries or min(queries, FEW)
        yield from ((self.draws, q) for q in range(self.queries or queries, few, -1))
        yield from ((draws, few) for draws in range(self.draws, 1, -1))
        if self.queries is None:
            yield from ((2, q) for q in range(few - 1, 0, -1))


def resampled(dataset: Dataset, index: int, spec: EpisodeSpec, draws: int) -> Task:
    """Test task `index` with R disjoint support sets and the same queries, as R tasks [R, ...]."""
    drawn = dataset.episodes("test", EPISODE_SEED, 0, range(index, index + 1), _joined(spec, draws))
    # Rows are ordered shot by shot, so that consecutive rows are a support set with as many of every class.
    support = (part[0].reshape(draws, -1, *part.shape[2:]) for part in drawn.support)
    query = (part.expand(draws, *part.shape[1:]) for part in drawn.query)
    return Task(Batch(*support), Batch(*query))


def _joined(spec: EpisodeSpec, draws: int) -> EpisodeSpec:
    return spec._replace(shots=spec.shots * draws)


def _said(facts: dict[str, Any], values: dict[str, Any]) -> str:
    metric, (low, high) = facts["metric"], values["share_interval"]
    lines = [
        f"{facts['draws']} support sets for each of {facts['tasks']} tasks, {facts['queries']} queries: "
        f"{format_metric(metric, values['mean'])}, with the worst of each task's "
        f"{format_metric(metric, values['worst_draw'])}",
        f"standard deviation between tasks {format_metric(metric, values['sd_tasks'])}, between support sets of a task "
        f"{format_metric(metric, values['sd_support'])}: {values['share_support']:.0%} of the variance "
        f"({low:.0%} to {high:.0%}) is the choice of support",
    ]
    if facts["not_finite"]:
        lines.append(f"left out: {facts['not_finite']} tasks on which adaptation diverged after some draw")
    return "\n".join(lines)
