r"""The same settings trained with several seeds: how certain the metric is, and what its spread comes from.

    mean      over seeds, with Student's interval: for a new seed on these test tasks
    IQM       interquartile mean of the seeds' metrics, with a bootstrap over seeds (report/statistics/intervals.py)
    variance  of one score = seed + task + residual (report/statistics/variance.py); every seed is scored on the same
              fixed test tasks, so that the mean has a standard error for new seeds and new tasks alike
    steps     until the validation metric reached the threshold: 90 % of the way from its first to its best value, of
              the first seed that improved; runs that never did are counted, not averaged

The run to analyse counts as its own seed if it was trained and tested with these settings. A diverged run has no
metric: it is counted, and left out of all else. Agarwal et al. 2021, arXiv 2108.13264, on few seeds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from metarun.analyses.analysis import Cell, Context, Row, TrainedRun, require_at_least
from metarun.config.schema import to_dict
from metarun.errors import UserError
from metarun.report.figures.drawing import COLOURS, GREY, Drawing, finish, look, panels
from metarun.report.statistics.convergence import Curve, default_thresholds, find_crossing, validation_curve
from metarun.report.statistics.intervals import iqm, stratified_bootstrap, t_interval
from metarun.report.statistics.variance import variance_components
from metarun.storage.json_values import replace_nonfinite
from metarun.storage.status import FINAL
from metarun.storage.text import axis_label, count_nouns, display_scale, format_metric

RESULT_SETTINGS = ("seed", "algo", "data", "model", "reg", "train", "val", "test", "optim")
"""Settings that decide the result of a run."""

BOOTSTRAP_SEED = 0
PARTS = (("seed", COLOURS[1]), ("task", COLOURS[0]), ("residual", COLOURS[4]))


@dataclass(frozen=True)
class Seeds:
    seeds: int  # of runs, the run to analyse among them

    def __post_init__(self) -> None:
        require_at_least(self, seeds=2)

    def cells(self, context: Context) -> Sequence[Cell]:
        """The run's own seed first, then 0, 1, ... without it."""
        context.assemble()
        own = context.config.seed
        others = [s for s in range(self.seeds) if s != own]
        return [{"seed": s} for s in [own, *others][: self.seeds]]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        run = find_source_run(context, cell["seed"])
        if run is None:
            seeds = [c["seed"] for c in self.cells(context) if find_source_run(context, c["seed"]) is None]
            run = context.train_one_of({f"seed-{s}": {"seed": s} for s in seeds}, f"seed-{cell['seed']}")
        if run.diverged:
            return {"diverged": True}
        curve = validation_curve(run.folder.read_records(), [], context.config.train.tasks)
        row = {"diverged": False, **{k: run.summary[k] for k in ("mean", "ci95", "best_step", "episodes_sha256")}}
        row["scores"] = _read_scores(run)
        return row | {"validations": {"steps": curve.steps.tolist(), "values": curve.values.tolist()}}

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        loss = context.assemble().algorithm.loss
        finished = [r for r in rows if not r["diverged"]]
        summary = {"metric": loss.metric, "seeds": len(rows), "diverged": len(rows) - len(finished)}
        if not finished:
            return replace_nonfinite(summary | {"message": "every seed diverged"})
        means = [r["mean"] for r in finished]
        mean, half = t_interval(means)
        middle = stratified_bootstrap(means, iqm, BOOTSTRAP_SEED)
        summary |= {"mean": mean, "half": half, "iqm": middle.estimate, "iqm_low": middle.low, "iqm_high": middle.high}
        same_episodes = len({r["episodes_sha256"] for r in finished}) == 1
        summary["components"] = None
        if len(finished) >= 2 and same_episodes and len(finished[0]["scores"]) >= 2:
            scores = np.array([r["scores"] for r in finished], dtype=float)
            summary["components"] = variance_components(scores)._asdict()
        summary["convergence"] = _summarise_convergence(finished, loss.higher_is_better)
        lost = f"; {summary['diverged']} diverged" if summary["diverged"] else ""
        value = f"{format_metric(loss.metric, mean, half)} (95 % t interval)"
        message = f"test {loss.metric} over {count_nouns(len(finished), 'seed')}: {value}{lost}"
        return replace_nonfinite(summary | {"message": message})

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        """Each seed's metric, the parts of the variance of a score, and the learning curves."""
        metric = summary["metric"]
        finished = [r for r in rows if not r["diverged"]]
        drawn, (left, middle, right) = panels(3, height=2.9)
        if finished:
            _draw_means(left, finished, summary, display_scale(metric))
            for i, row in enumerate(finished):
                values = display_scale(metric) * np.array(row["validations"]["values"], dtype=float)
                own = look(i)
                right.plot(row["validations"]["steps"], values, color=own.colour, linestyle=own.dash, marker=own.marker)
            if summary["convergence"]:
                threshold = display_scale(metric) * summary["convergence"]["threshold"]
                right.axhline(threshold, color=GREY, linewidth=0.8, label="threshold")
                right.legend()
        components = summary.get("components")
        if components:
            total = sum(components[name] for name, _ in PARTS) or 1.0
            for y, (name, colour) in enumerate(PARTS):
                share = 100 * components[name] / total
                middle.barh(y, share, color=colour, height=0.6)
                middle.text(share, y, f" {share:.3g} %", va="center")
            middle.set_yticks(range(len(PARTS)), [name for name, _ in PARTS])
            middle.set(xlim=(0, 118), ylim=(len(PARTS) - 0.5, -0.5))
        finish(left, "Test, 95 % intervals", "seed", axis_label(metric))
        left.set_xticks(range(len(finished)), [str(r["seed"]) for r in finished])
        middle.set_title("Where one score's variance is from", y=1.03)
        middle.set_xlabel("share of the variance, %")
        shown = np.array([v for r in finished for v in r["validations"]["values"] if v is not None], dtype=float)
        finish(right, "Validation, a line a seed", "outer steps", axis_label(metric), [display_scale(metric) * shown])
        value = format_metric(metric, summary.get("mean"), summary.get("half"))
        alt = f"Test {metric} of {count_nouns(len(finished), 'seed')}: {value}; {summary['diverged']} diverged."
        return [Drawing("seeds", alt, drawn)]


def find_source_run(context: Context, seed: int) -> TrainedRun | None:
    """The run to analyse, if it was trained to its end with the settings in question and this seed."""
    if context.source is None:
        return None
    summary = context.source.read_summary()
    settings = json.loads(json.dumps(to_dict(context.change_settings({"seed": seed}))))
    stored = json.loads(json.dumps(context.source.read_config()))  # as JSON has it, where tuples are lists
    same = all(settings[k] == stored.get(k) for k in RESULT_SETTINGS)
    tested = summary.get("status") == "diverged" or (context.source.path / "test.json").exists()
    return TrainedRun(summary, context.source) if same and tested and summary.get("status") in FINAL else None


def _read_scores(run: TrainedRun) -> list[float]:
    """The score of each test task at the adaptation step of the result."""
    path = run.folder.path / "test.json"
    try:
        test = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read; test the run again with job=evaluate") from error
    return test["scores"][test["steps"].index(run.summary["headline_step"])]


def _summarise_convergence(rows: Sequence[Row], higher_is_better: bool) -> dict[str, Any] | None:
    """Steps to the threshold of the first seed that improved; None if none did."""
    curves = []
    for row in rows:
        steps, values = (np.array(row["validations"][k], dtype=float) for k in ("steps", "values"))  # None becomes NaN
        curves.append(Curve(values, steps, steps, steps, steps))
    levels = (default_thresholds(c, higher_is_better).get("90_percent_first_best") for c in curves)
    threshold = next((level for level in levels if level is not None), None)
    if threshold is None:
        return None
    crossings = [find_crossing(c, threshold, higher_is_better).at for c in curves]
    counts = [None if c is None else c.steps for c in crossings]
    reached = [n for n in counts if n is not None]
    summary = {"threshold": threshold, "steps": counts, "never": counts.count(None)}
    return summary | {"fewest": min(reached, default=None), "most": max(reached, default=None)}


def _draw_means(axes: Axes, rows: Sequence[Row], summary: dict[str, Any], scale: float) -> None:
    """Bars of single seeds are over test tasks, the band is over seeds."""
    means, halves = ([scale * (r[k] or 0) for r in rows] for k in ("mean", "ci95"))
    bars: dict[str, Any] = {"color": COLOURS[0], "capsize": 3}
    axes.errorbar(range(len(rows)), means, yerr=halves, fmt="o", label="a seed, over tasks", **bars)
    mean, half = (scale * (summary[k] or 0) for k in ("mean", "half"))
    axes.axhline(mean, color=COLOURS[1], linewidth=1)
    axes.axhspan(mean - half, mean + half, color=COLOURS[1], alpha=0.18, linewidth=0, label="mean, over seeds")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
    axes.legend(loc="upper left", ncols=2)
