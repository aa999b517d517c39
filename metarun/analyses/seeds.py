r"""The same settings trained with several seeds: how sure the figure is, and what its spread comes from.

    mean      over seeds, with Student's interval: for a new seed on these test tasks
    IQM       interquartile mean of the seeds' figures, with a bootstrap over seeds (metarun/statistics/intervals.py)
    variance  of one score = seed + task + residual (metarun/statistics/components.py); every seed is scored on the same
              fixed test tasks, so that the mean has a standard error for new seeds and new tasks alike
    steps     until the validation figure reached the threshold: 90 % of the way from its first to its best value, of
              the first seed that improved; runs that never did are counted, not averaged

The run in question counts as its own seed where it was trained and tested with these settings. A diverged run has no
figure: it is counted, and left out of all else. Agarwal et al. 2021, arXiv 2108.13264, on few seeds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metarun.analyses.context import Context, TrainedRun
from metarun.analyses.frame import Cell, Row
from metarun.analyses.seeds_figure import draw_seeds
from metarun.errors import UserError, require
from metarun.report.figures.drawing import Drawing
from metarun.statistics.components import variance_components
from metarun.statistics.convergence import Curve, default_thresholds, to_threshold, validation_curve
from metarun.statistics.intervals import iqm, stratified_bootstrap, t_interval
from metarun.storage.json_values import replace_nonfinite
from metarun.storage.run_folder import RunFolder
from metarun.storage.status import FINAL
from metarun.storage.text import format_metric

DECIDE = ("seed", "algo", "data", "model", "reg", "train", "val", "test", "optim")
"""Settings that decide what a run comes to."""

BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Seeds:
    seeds: int  # of runs, the run in question among them

    def __post_init__(self) -> None:
        require(self.seeds >= 2, "seeds", self.seeds, "must be at least 2")

    def cells(self, context: Context) -> Sequence[Cell]:
        """The run's own seed first, then 0, 1, ... without it."""
        context.experiment()
        own = context.config.seed
        others = [s for s in range(self.seeds) if s != own]
        return [{"seed": s} for s in [own, *others][: self.seeds]]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        run = own_run(context, cell["seed"]) or context.train(f"seed-{cell['seed']}", {"seed": cell["seed"]})
        if run.diverged:
            return {"diverged": True}
        curve = validation_curve(run.folder.read_records(), [], context.config.train.tasks)
        keys = ("mean", "ci95", "best_step", "episodes_sha256")
        row = {"diverged": False, **{k: run.summary[k] for k in keys}, "scores": _scores(run)}
        return row | {"validations": {"steps": curve.steps.tolist(), "values": curve.values.tolist()}}

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        loss = context.experiment().algorithm.loss
        sound = [r for r in rows if not r["diverged"]]
        summary = {"metric": loss.metric, "seeds": len(rows), "diverged": len(rows) - len(sound)}
        if not sound:
            return replace_nonfinite(summary | {"message": "every seed diverged"})
        means = [r["mean"] for r in sound]
        mean, half = t_interval(means)
        middle = stratified_bootstrap(means, iqm, BOOTSTRAP_SEED)
        summary |= {"mean": mean, "half": half, "iqm": middle.estimate, "iqm_low": middle.low, "iqm_high": middle.high}
        summary |= {"components": _components(sound), "convergence": _convergence(sound, loss.higher_is_better)}
        lost = f"; {summary['diverged']} diverged" if summary["diverged"] else ""
        reached = format_metric(loss.metric, mean, half)
        told = f"test {loss.metric} over {len(sound)} seeds: {reached} (95 % t interval){lost}"
        return replace_nonfinite(summary | {"message": told})

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Drawing:
        return draw_seeds(rows, summary)


def own_run(context: Context, seed: int) -> TrainedRun | None:
    """The run in question, if it has this seed, was trained to its end, and has the settings that are asked about."""
    if context.source is None:
        return None
    summary = context.source.read_summary()
    asked, stored = dataclasses.asdict(context.changed({"seed": seed})), context.source.config()
    same = all(_plain(asked[k]) == _plain(stored.get(k)) for k in DECIDE)
    tested = summary.get("status") == "diverged" or (context.source.path / "test.json").exists()
    return TrainedRun(summary, context.source) if same and tested and summary.get("status") in FINAL else None


def _plain(value: Any) -> Any:
    """As JSON has it: tuples are lists."""
    return json.loads(json.dumps(value))


def _scores(run: TrainedRun) -> list[float]:
    """Each test task's figure at the adaptation step that is the result."""
    found = _test(run.folder)
    return found["scores"][found["steps"].index(run.summary["headline_step"])]


def _test(run: RunFolder) -> Any:
    try:
        return json.loads((run.path / "test.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{run.path / 'test.json'}: cannot be read; test the run again with job=evaluate") from error


def _components(rows: Sequence[Row]) -> dict[str, Any] | None:
    """None for a single seed, or where the seeds were scored on different episodes."""
    if len(rows) < 2 or len({r["episodes_sha256"] for r in rows}) > 1 or len(rows[0]["scores"]) < 2:
        return None
    found = variance_components(np.array([r["scores"] for r in rows], dtype=float))
    return found._asdict()


def _convergence(rows: Sequence[Row], higher: bool) -> dict[str, Any] | None:
    """Steps to the first seed's threshold; None where no seed ever improved."""
    curves = [_curve(r) for r in rows]
    levels = (default_thresholds(c, higher).get("90_percent_first_best") for c in curves)
    threshold = next((level for level in levels if level is not None), None)
    if threshold is None:
        return None
    crossings = [to_threshold(c, threshold, higher).at for c in curves]
    steps = [None if c is None else c.steps for c in crossings]
    reached = [s for s in steps if s is not None]
    told = {"threshold": threshold, "steps": steps, "never": steps.count(None)}
    return told | {"fewest": min(reached, default=None), "most": max(reached, default=None)}


def _curve(row: Row) -> Curve:
    steps = np.array(row["validations"]["steps"], dtype=float)
    values = np.array(row["validations"]["values"], dtype=float)  # null becomes NaN
    return Curve(values, steps, steps, steps, steps)
