r"""Early stopping by activations: which weights of a run are best for a data set, without any label of it.

A run with `train.keep_weights=true` keeps the weights of every validation. Of each, four moments of the activations of
every layer are measured (metarun/diagnostics/activation_moments.py), on training inputs and on the support inputs of
one task of the data set. The weights are chosen where the two part: at the start of the interval, up to the best
validation, over which a moment of the one goes up while that of the other goes down. The layer and the moment are
those of the largest score. Where nothing parts, the best validation decides, as in training.

The task is none of those that the weights are tested on. Its labels, and its queries, are not used. Activations are
those of theta, before adaptation, with the run's own statistics in a network of norm=population. Intervals are over
test tasks, 95 %; `difference` is paired, task by task, and is for these weights: how often the choice helps is a
question over runs and data sets.

Guiroy, Pal, Mordido, Chandar 2022, Improving meta-learning generalization with activation-based early-stopping, arXiv
2208.02377.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from metarun.analyses.analysis import Cell, Context, Row, SourceRun, mask_diverged, require_at_least
from metarun.analyses.other_data import open_set
from metarun.config.data_sets import FORM
from metarun.diagnostics.activation_moments import FEWEST, MOMENTS, Parting, aggregate_moments, find_parting
from metarun.errors import UserError, require
from metarun.report.figures.drawing import COLOURS, DASHES, GREY, MARKERS, Drawing, finish, panels, plain
from metarun.report.statistics.paired import compare
from metarun.storage.text import axis_label, count_nouns, display_scale, format_metric
from metarun.training import checkpoint
from metarun.training.evaluation import EPISODE_SEED, calibrate, mean_and_interval
from metarun.training.experiment import option_name
from metarun.types import Algorithm, Dataset, Params

INPUTS_OF_TRAINING = 100
MOST_SETS = 6
"""That the figure has rows for."""


@dataclass(frozen=True)
class EarlyStopping:
    sets: dict[str, Any] | None  # name -> settings (config/data_sets.py); None: the run's own test split
    tasks: int  # that the weights are tested on

    def __post_init__(self) -> None:
        require(self.sets is None or bool(self.sets), "sets", self.sets, FORM)
        require_at_least(self, tasks=2)

    def cells(self, context: Context) -> Sequence[Cell]:
        """One cell for each data set and each step whose weights are kept."""
        source = context.require_source()
        steps = source.kept_steps()
        if len(steps) < FEWEST:
            reason = f"{source.path} has the weights of {count_nouns(len(steps), 'step')}, and needs {FEWEST}"
            raise UserError(f"analysis=early_stopping: {reason}; train with train.keep_weights=true")
        names = list(self.sets or {}) or [option_name("data", context.run.experiment.config)]
        for name in names:
            self._open(context, name).check("test", context.run.experiment.test_spec)
        return [{"data": name, "step": step} for name in names for step in steps]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        run, dataset = context.run, self._open(context, cell["data"])
        experiment = replace(run.experiment, dataset=dataset)
        params = experiment.initial_params()
        checkpoint.restore_params(context.require_source().weights_of(cell["step"]), params)
        params = experiment.fit_head(params)
        learner = experiment.tested
        found = experiment.evaluator("test", self.tasks, (learner.test_inner_steps,))(learner, params)
        scores = mask_diverged(found.losses, found.scores)[found.headline].double()
        mean, half = mean_and_interval(scores)
        own = run.experiment.dataset  # whose statistics the network has for both
        calibrated = calibrate(learner, params, own, experiment.placement)
        inputs = {"source": own.reference_inputs(INPUTS_OF_TRAINING), "target": self._support_inputs(run, dataset)}
        moments = {which: measure_moments(calibrated, params, run, x) for which, x in inputs.items()}
        validation = {r["step"]: r["mean"] for r in _validations(context)}.get(cell["step"])
        return {"mean": mean, "half": half, "validation": validation, "moments": moments, "scores": scores.tolist()}

    def _open(self, context: Context, name: str) -> Dataset:
        if self.sets is None:
            return context.run.experiment.dataset
        return open_set(name, self.sets[name], context.run.experiment)[0]

    def _support_inputs(self, run: SourceRun, dataset: Dataset) -> Tensor:
        """[S, ...] of the task after those of the test."""
        numbers = range(self.tasks, self.tasks + 1)
        return dataset.episodes("test", EPISODE_SEED, 0, numbers, run.experiment.test_spec).support.x[0]

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        loss = context.run.experiment.tested.loss
        best = _best_step(context)
        sets = {name: _choose(own, best, loss.higher_is_better) for name, own in _by_set(rows).items()}
        lines = [_describe(name, found, loss.metric) for name, found in sets.items()]
        return {"metric": loss.metric, "tasks": self.tasks, "sets": sets, "message": "\n".join(lines)}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        """A row for each data set: left the two trajectories that part, right what the weights are worth."""
        names = list(summary["sets"])[:MOST_SETS]
        drawn, axes = panels(2 * len(names), columns=2, height=2.8)
        for i, name in enumerate(names):
            own, found = _by_set(rows)[name], summary["sets"][name]
            _draw_trajectories(axes[2 * i], own, found, name)
            _draw_values(axes[2 * i + 1], own, found, name, summary["metric"])
        values = " ".join(line + "." for line in summary["message"].splitlines())
        return [Drawing("early_stopping", f"Early stopping by activations. {values}", drawn)]


def measure_moments(learner: Algorithm, params: Params, run: SourceRun, x: Tensor) -> dict[str, dict[str, float]]:
    """The four moments of each layer's activations on inputs [B, ...], by layer."""
    inputs = run.experiment.placement.move(x).to(next(iter(params.values())).dtype)
    with torch.no_grad():
        layers = learner.model.activations(params, inputs)
    return {layer: aggregate_moments(h) for layer, h in layers.items()}


def choose_parting(rows: Sequence[Row]) -> tuple[str, str, Parting] | None:
    """The layer, the moment and where it parts, of the largest score; None if nothing parts."""
    found = None
    for layer in rows[0]["moments"]["source"]:
        for moment in MOMENTS:
            target, source = ([row["moments"][k][layer][moment] for row in rows] for k in ("target", "source"))
            parting = find_parting(target, source)
            if parting and (found is None or parting.score > found[2].score):
                found = layer, moment, parting
    return found


def _choose(rows: Sequence[Row], best: int, higher_is_better: bool) -> dict[str, Any]:
    """The steps that activations, the validation and the test itself choose, with their means."""
    before = [row for row in rows if row["step"] <= best]
    parting = choose_parting(before)
    chosen, validated = before[parting[2].start if parting else -1], before[-1]
    sign = 1 if higher_is_better else -1
    finite = [row for row in rows if row["mean"] is not None and np.isfinite(row["mean"])]
    largest = max(finite, key=lambda row: sign * row["mean"], default=validated)
    ours, theirs = ([np.nan if v is None else v for v in row["scores"]] for row in (chosen, validated))
    pairs = compare(ours, theirs, higher_is_better)
    steps = {"by_activations": chosen, "by_validation": validated, "best_of_test": largest}
    found: dict[str, Any] = {k: {name: row[name] for name in ("step", "mean", "half")} for k, row in steps.items()}
    found |= {"difference": pairs.difference, "half_difference": pairs.half, "layer": None, "moment": None}
    if parting:
        layer, moment, where = parting
        found |= {"layer": layer, "moment": moment, "correlation": where.correlation}
        found["validations"] = len(before) - where.start
    return found


def _describe(name: str, found: dict[str, Any], metric: str) -> str:
    value = {k: format_metric(metric, found[k]["mean"], found[k]["half"]) for k in ("by_activations", "by_validation")}
    validated, largest = found["by_validation"], found["best_of_test"]
    best = (
        f"best of all kept weights {format_metric(metric, largest['mean'], largest['half'])} (step {largest['step']})"
    )
    if found["layer"] is None:
        kept = f"the best validation (step {validated['step']}) has {value['by_validation']}"
        return f"{name}: activations do not part from those of training; {kept}, {best}"
    where = f"{found['layer']}, {found['moment']}, correlation {found['correlation']:.2f}"
    parted = f"part from those of training at step {found['by_activations']['step']} ({where} over "
    parted += f"{count_nouns(found['validations'], 'validation')}): {value['by_activations']} there"
    difference = format_metric(metric, found["difference"], found["half_difference"]).replace(" %", " points")
    kept = f"{value['by_validation']} at the best validation (step {validated['step']}), difference {difference}"
    return f"{name}: activations {parted}, {kept}; {best}"


def _best_step(context: Context) -> int:
    """The step of the best validation."""
    return int(checkpoint.load(checkpoint.best_of(context.require_source()))["step"])


def _validations(context: Context) -> list[dict[str, Any]]:
    return [record for record in context.require_source().read_records() if record["kind"] == "val"]


def _by_set(rows: Sequence[Row]) -> dict[str, list[Row]]:
    names = dict.fromkeys(row["data"] for row in rows)
    return {name: sorted((r for r in rows if r["data"] == name), key=lambda row: row["step"]) for name in names}


def _draw_trajectories(axes: Axes, rows: Sequence[Row], found: dict[str, Any], name: str) -> None:
    """The moment that parts, less its mean and in its own standard deviations; without one, of the last layer."""
    layer = found["layer"] or list(rows[0]["moments"]["source"])[-1]
    moment = found["moment"] or MOMENTS[0]
    for i, (which, label) in enumerate({"target": f"{plain(name, 24)}, one support set", "source": "training"}.items()):
        values = np.array([row["moments"][which][layer][moment] for row in rows])
        shown = (values - values.mean()) / (values.std() or 1)
        axes.plot(
            [r["step"] for r in rows], shown, color=COLOURS[i], linestyle=DASHES[i], marker=MARKERS[i], label=label
        )
    _mark(axes, found)
    finish(axes, f"Activations of {plain(layer)}: {moment}", "outer step", "standard deviations")
    axes.legend()


def _draw_values(axes: Axes, rows: Sequence[Row], found: dict[str, Any], name: str, metric: str) -> None:
    scale, steps = display_scale(metric), [row["step"] for row in rows]
    for i, (key, label) in enumerate({"mean": "its test tasks", "validation": "validation of the run"}.items()):
        values = [np.nan if row[key] is None else scale * row[key] for row in rows]
        half = [scale * (row["half"] or 0) if key == "mean" else 0 for row in rows]
        look: dict[str, Any] = {"color": COLOURS[i], "linestyle": DASHES[i], "marker": MARKERS[i]}
        axes.errorbar(steps, values, yerr=half, capsize=2, label=label, **look)
    _mark(axes, found)
    finish(axes, f"What the weights are worth: {plain(name, 30)}", "outer step", axis_label(metric))
    axes.legend()


def _mark(axes: Axes, found: dict[str, Any]) -> None:
    """Lines at the two choices."""
    chosen, validated = (found[k]["step"] for k in ("by_activations", "by_validation"))
    axes.axvline(validated, color=GREY, linewidth=0.9, linestyle=":", label="best validation")
    if chosen != validated:
        axes.axvline(chosen, color=GREY, linewidth=0.9, linestyle="--", label="by activations")
