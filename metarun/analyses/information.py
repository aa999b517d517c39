r"""How much of a task its representation and its latent variable keep: mutual information in nats, by bounds.

A test task has two views: k support rows and k other rows of it (its queries). r and r' are the representations of the
two: the encoded context of a neural process or autoencoder, and for labelled images the mean feature of the rows. Given
the task they are independent, so that

    representation           InfoNCE(r, r') <= I(r; r') <= I(r; task)                at most log N, N half of the tasks
    latent_lower             <= I(z; data)                                           at most log of the tasks
    latent_upper             E KL(q(z | data) || aggregate) >= I(z; data)            aggregate: a Gaussian
    latent_given_context     E KL(q(z | data) || q(z | context)) >= I(z; data | context)

z is what the learner draws: for a task from support and queries together (data), its prior from the support
rows (context); an autoencoder's for one query of each task, data being the query and the context, the prior that of its
input and the context. All are bounds in expectation over tasks. A weak bound of the representation may also mean
that the critic, which is Gaussian, misses the dependence. metarun/diagnostics/information.py has formulas and sources.

`most` is log N of the representation's bound, `latent_most` log of the tasks: near them, raise `analysis.tasks`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from torch import Tensor

from metarun.analyses.analysis import Cell, Context, Row, SourceRun, require_at_least
from metarun.compute.task_axis import map_tasks
from metarun.diagnostics.information import (
    aggregate_divergence,
    code_information,
    mean_divergence,
    views_information,
)
from metarun.errors import UserError, require
from metarun.report.figures.drawing import COLOURS, GREY, MARKERS, Drawing, finish, panels
from metarun.storage.text import count_nouns
from metarun.training.evaluation import EPISODE_SEED, TASKS_PER_DRAW
from metarun.training.experiment import Experiment, option_name
from metarun.types import Algorithm, Batch, ContextLearner, EpisodeSpec, LatentLearner, Metrics, Params, Task

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
REPRESENTATION = {"representation": "InfoNCE, from below"}
LATENT = {
    "latent_lower": "latent and data, from below",
    "latent_upper": "the same, from above",
    "latent_given_context": "beyond the context, from above",
}
NEAR = 2
"""The line of the largest possible bound is drawn if a bound is above this part of it."""


@dataclass(frozen=True)
class Information:
    tasks: int
    shots: tuple[int, ...] | None  # of a context; None: 1, 2, 5, 10 ... up to data.shots
    components: int  # principal components of a representation

    def __post_init__(self) -> None:
        require_at_least(self, tasks=8, components=1)
        valid = self.shots is None or (bool(self.shots) and min(self.shots) >= 1)
        require(valid, "shots", self.shots, "must be whole numbers of at least 1, or null")

    def cells(self, context: Context) -> Sequence[Cell]:
        """One cell per size of the context."""
        experiment = context.run.experiment
        if not (isinstance(context.run.learner, ContextLearner) or experiment.dataset.kind == "classification"):
            pair = f"algo={option_name('algo', experiment.config)} data={option_name('data', experiment.config)}"
            reason = "this learner has no representation of a context; choose algo=cnp, tnpd, convcnp, np, anp, cvae"
            raise UserError(f"analysis=information: {pair}: {reason}, or labelled images")
        most = experiment.test_spec.shots
        shots = self.shots or tuple(sorted({*(k for k in SIZES if k < most), most}))
        for k in shots:
            experiment.dataset.check("test", _spec(experiment, k))
        return [{"shots": k} for k in shots]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        views = encode_tasks(context.run, _spec(context.run.experiment, cell["shots"]), self.tasks)
        bounds = {"representation": views_information(views["r"], views["r_other"], self.components)}
        largest = {"most": math.log(self.tasks - self.tasks // 2)}
        if "mu" in views:
            mu, sigma = views["mu"], views["sigma"]
            z = mu + sigma * torch.randn(mu.shape, generator=torch.Generator().manual_seed(0)).to(mu)
            bounds["latent_lower"] = code_information(mu, sigma, z)
            bounds["latent_upper"] = aggregate_divergence(mu, sigma)
            bounds["latent_given_context"] = mean_divergence(mu, sigma, views["prior_mu"], views["prior_sigma"])
            largest["latent_most"] = math.log(self.tasks)
        row: dict[str, float] = {}
        for name, bound in bounds.items():
            row |= {name: bound.value, f"half_{name}": bound.half}
        return row | largest

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        lines = []
        for row in rows:
            shared = f"{row['representation']:.3g} nats (largest possible bound {row['most']:.3g})"
            line = f"{count_nouns(row['shots'], 'shot')}: representation and task share at least {shared}"
            if "latent_lower" in row:
                lower = f"{row['latent_lower']:.3g} (largest possible bound {row['latent_most']:.3g})"
                line += f"; latent and data {lower} to {row['latent_upper']:.3g}"
                line += f", beyond the context at most {row['latent_given_context']:.3g}"
            lines.append(line)
        return {"tasks": self.tasks, "components": self.components, "message": "\n".join(lines)}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        """Left the representation, right the latent variable of learners that have one."""
        latent = "latent_lower" in rows[0]
        drawn, axes = panels(2 if latent else 1, columns=2, height=2.9)
        _draw_bounds(axes[0], rows, REPRESENTATION, "most", "Representation and task")
        if latent:
            _draw_bounds(axes[1], rows, LATENT, "latent_most", "Latent variable")
        return [Drawing("information", f"Bounds of mutual information over {summary['tasks']} test tasks.", drawn)]


def encode_tasks(run: SourceRun, spec: EpisodeSpec, tasks: int) -> dict[str, Tensor]:
    """r and r_other [T, R] of each test task; mu, sigma, prior_mu, prior_sigma [T, D] if there are latent variables."""
    experiment, learner = run.experiment, run.learner

    def encode_task(params: Params, task: Task) -> tuple[Metrics, Metrics]:
        views = {"r": encode(learner, params, task.support), "r_other": encode(learner, params, task.query)}
        if isinstance(learner, LatentLearner):
            posterior, prior = learner.latents(params, task)
            views |= {"mu": posterior[0], "sigma": posterior[1], "prior_mu": prior[0], "prior_sigma": prior[1]}
        return views, {}

    placement, parts = experiment.placement, []
    chunk = placement.evaluation_chunk(spec, experiment.dataset.input_shape())
    with torch.no_grad():
        for start in range(0, tasks, TASKS_PER_DRAW):
            numbers = range(start, min(start + TASKS_PER_DRAW, tasks))
            drawn = placement.move_task(experiment.dataset.episodes("test", EPISODE_SEED, 0, numbers, spec))
            parts.append(
                map_tasks(encode_task, len(numbers), chunk, processes=placement.processes)(run.params, drawn)[0]
            )
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}


def encode(learner: Algorithm, params: Params, rows: Batch) -> Tensor:
    """The representation of a set of rows, [R]."""
    if isinstance(learner, ContextLearner):
        return learner.encode(params, rows)
    return learner.model.activations(params, rows.x)["features"].mean(0)


def _spec(experiment: Experiment, shots: int) -> EpisodeSpec:
    """As many queries as support rows."""
    return experiment.test_spec._replace(shots=shots, queries=shots)


def _draw_bounds(axes: Axes, rows: Sequence[Row], labels: dict[str, str], most: str, title: str) -> None:
    """The bounds by the size of the context; the first is the one that is at most `most`."""
    shots = [row["shots"] for row in rows]
    for i, (name, label) in enumerate(labels.items()):
        values, halves = ([row[key] for row in rows] for key in (name, f"half_{name}"))
        axes.errorbar(shots, values, yerr=halves, color=COLOURS[i], marker=MARKERS[i], capsize=2, label=label)
    if max(row[next(iter(labels))] for row in rows) > rows[0][most] / NEAR:  # else it would press the lines down
        label = "largest possible bound from below"
        axes.axhline(rows[0][most], color=GREY, linewidth=0.8, linestyle="--", label=label)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    finish(axes, title, "shots of the context", "nats")
    if len(shots) > 1:
        axes.set_xscale("log")
        axes.set_xticks(shots, [str(k) for k in shots])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.legend()
