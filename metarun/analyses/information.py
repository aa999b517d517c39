r"""How much of a task its representation and its latent variable keep: mutual information in nats, by bounds.

A test task is looked at twice, through k support rows and k other rows of it (its queries). r and r' are what the
learner makes of each: the encoded context of a neural process or autoencoder, and for labelled images the mean feature
of the rows. Given the task they are independent, so that

    representation           InfoNCE(r, r') <= I(r; r') <= I(r; task)                at most log N, N half of the tasks
    latent_lower             <= I(z; data)                                           at most log of the tasks
    latent_upper             E KL(q(z | data) || aggregate) >= I(z; data)            aggregate: a Gaussian
    latent_given_context     E KL(q(z | data) || q(z | context)) >= I(z; data | context)

z is what the learner draws: for a task from support and queries together (data), its prior from the support
rows (context); an autoencoder's for one query of each task, data being the query and the context, the prior that of its
input and the context. All are bounds in expectation over tasks. A weak representation bound may also mean that the
critic, which is Gaussian, does not see what is there. metarun/diagnostics/information.py has formulas and sources.

`most` is log N of the representation's bound, `latent_most` log of the tasks: near them, raise `analysis.tasks`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarun.analyses.context import Context
from metarun.analyses.frame import Cell, Row
from metarun.analyses.information_figure import draw_information
from metarun.compute.task_axis import map_tasks
from metarun.diagnostics.information import (
    Bound,
    aggregate_divergence,
    code_information,
    mean_divergence,
    views_information,
)
from metarun.errors import UserError, require
from metarun.report.figures.drawing import Drawing
from metarun.training.evaluation import EPISODE_SEED, TASKS_PER_DRAW
from metarun.training.experiment import Experiment, option_name
from metarun.types import Algorithm, Batch, ContextLearner, EpisodeSpec, LatentLearner, Metrics, Params, Task

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True)
class Information:
    tasks: int
    shots: tuple[int, ...] | None  # of a context; None: 1, 2, 5, 10 ... up to data.shots
    components: int  # principal components of a representation

    def __post_init__(self) -> None:
        require(self.tasks >= 8, "tasks", self.tasks, "must be at least 8")
        require(self.components >= 1, "components", self.components, "must be at least 1")
        sound = self.shots is None or (bool(self.shots) and min(self.shots) >= 1)
        require(sound, "shots", self.shots, "must be whole numbers of at least 1, or null")

    def cells(self, context: Context) -> Sequence[Cell]:
        """A size of the context each."""
        experiment, _ = context.own
        if not (isinstance(context.learner, ContextLearner) or experiment.dataset.kind == "classification"):
            pair = f"algo={option_name('algo', experiment.config)} data={option_name('data', experiment.config)}"
            told = "this learner keeps nothing of a context but its weights; choose algo=cnp, np, anp, cvae"
            raise UserError(f"analysis=information: {pair}: {told}, or labelled images")
        most = experiment.test_spec.shots
        shots = self.shots or tuple(sorted({*(k for k in SIZES if k < most), most}))
        for k in shots:
            experiment.dataset.check("test", _spec(experiment, k))
        return [{"shots": k} for k in shots]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        experiment, params = context.own
        spec = _spec(experiment, cell["shots"])
        found = summaries(context.learner, experiment, params, spec, self.tasks)
        told = {"most": math.log(self.tasks - self.tasks // 2), "latent_most": math.log(self.tasks)}
        bounds = {"representation": views_information(found["r"], found["r_other"], self.components)}
        if "mu" in found:
            mu, sigma = found["mu"], found["sigma"]
            z = mu + sigma * torch.randn(mu.shape, generator=torch.Generator().manual_seed(0)).to(mu)
            bounds |= {
                "latent_lower": code_information(mu, sigma, z),
                "latent_upper": aggregate_divergence(mu, sigma),
                "latent_given_context": mean_divergence(mu, sigma, found["prior_mu"], found["prior_sigma"]),
            }
        return _flat(bounds) | {k: v for k, v in told.items() if k == "most" or "mu" in found}

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        said = [_said(row) for row in rows]
        return {"tasks": self.tasks, "components": self.components, "message": "\n".join(said)}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Drawing:
        return draw_information(rows, summary)


def summaries(
    learner: Algorithm, experiment: Experiment, params: Params, spec: EpisodeSpec, tasks: int
) -> dict[str, Tensor]:
    """Of each test task: r and r_other [T, R]; mu, sigma, prior_mu, prior_sigma [T, D] where something is latent."""

    def one(params: Params, task: Task) -> tuple[Metrics, Metrics]:
        found = {"r": represented(learner, params, task.support), "r_other": represented(learner, params, task.query)}
        if isinstance(learner, LatentLearner):
            posterior, prior = learner.latents(params, task)
            found |= {"mu": posterior[0], "sigma": posterior[1], "prior_mu": prior[0], "prior_sigma": prior[1]}
        return found, {}

    place, parts = experiment.placement, []
    chunk = place.evaluation_chunk(spec, experiment.dataset.input_shape())
    with torch.no_grad():
        for start in range(0, tasks, TASKS_PER_DRAW):
            numbers = range(start, min(start + TASKS_PER_DRAW, tasks))
            drawn = place.move_task(experiment.dataset.episodes("test", EPISODE_SEED, 0, numbers, spec))
            parts.append(map_tasks(one, len(numbers), chunk, processes=place.processes)(params, drawn)[0])
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}


def represented(learner: Algorithm, params: Params, rows: Batch) -> Tensor:
    """What a learner makes of a set of rows, [R]."""
    if isinstance(learner, ContextLearner):
        return learner.encode(params, rows)
    return learner.model.activations(params, rows.x)["features"].mean(0)


def _spec(experiment: Experiment, shots: int) -> EpisodeSpec:
    """As many queries as support rows."""
    return experiment.test_spec._replace(shots=shots, queries=shots)


def _flat(bounds: dict[str, Bound]) -> dict[str, float]:
    return {
        f"{end}{name}": getattr(b, part)
        for name, b in bounds.items()
        for end, part in (("", "value"), ("half_", "half"))
    }


def _said(row: Row) -> str:
    told = f"{row['shots']} shots: representation and task share at least {row['representation']:.3g} nats "
    told += f"(at most {row['most']:.3g} can be told)"
    if "latent_lower" not in row:
        return told
    between = f"{row['latent_lower']:.3g} (at most {row['latent_most']:.3g}) to {row['latent_upper']:.3g}"
    return f"{told}; latent and data {between}, beyond the context at most {row['latent_given_context']:.3g}"
