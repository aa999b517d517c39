r"""The meta-gradient of a proximal learner on fixed test tasks, over lambda and the steps of its conjugate gradient.

cg_residual     |A x - b| / |b| after so many steps, mean over tasks; A = (1 + d) I + H / lambda
cg_negative     share of tasks on which A was seen not to be positive definite (the solver stops there)
stationarity    |grad L^S(phi) + lambda (phi - theta)| / |grad L^S(theta)|: how far the inner loop is from the minimiser
                that the implicit gradient takes for granted
implicit_error  |m_i - u_i| / |u_i| against the gradient through many inner steps (metarun/diagnostics/implicit.py), for
                small networks only; where `unroll_stationarity` is not small, it is no measure either

The weights are the run's, whatever lambda they were trained with. Rajeswaran et al. 2019, arXiv 1909.04630.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metarun.analyses.context import Context
from metarun.analyses.figures import heat_map
from metarun.analyses.frame import Cell, Row
from metarun.diagnostics.meta_gradients import implicit_measures
from metarun.diagnostics.task_sample import TaskSample
from metarun.report.figures.drawing import Drawing
from metarun.training.evaluation import EPISODE_SEED
from metarun.training.experiment import Experiment

REPORTED = ("cg_residual", "cg_negative", "stationarity")
SHOWN = {
    "cg_residual": "residual of the conjugate gradient",
    "cg_negative": "share of tasks with negative curvature",
    "implicit_error": "error of the implicit meta-gradient",
}
"""Measure -> what the figure says it is."""


def implicit_cells(context: Context, factors: Sequence[float], cg_steps: Sequence[int]) -> list[Cell]:
    """None for a learner that takes its meta-gradient from something else than a conjugate gradient."""
    settings = context.config.algo
    if "cg_steps" not in settings:
        return []
    steps = sorted({*cg_steps, settings["cg_steps"]}) if cg_steps else []
    return [{"prox": settings["prox"] * f, "cg_steps": k} for f in factors for k in steps]


def measure_implicit(context: Context, cell: Cell, tasks: int, unroll_steps: int) -> dict[str, Any]:
    experiment = context.experiment({f"algo.{k}": v for k, v in cell.items()})
    learner: Any = experiment.tested
    params, drawn = context.own[1], _tasks(experiment, tasks)
    metrics = drawn.each(learner.meta_grad, params)[1]
    found = {name: float(metrics[name].double().mean()) for name in REPORTED if name in metrics}
    return found | implicit_measures(learner, params, drawn, unroll_steps)


def _tasks(experiment: Experiment, tasks: int) -> TaskSample:
    place, spec = experiment.placement, experiment.test_spec
    drawn = experiment.dataset.episodes("test", EPISODE_SEED, 0, range(tasks), spec)
    chunk = place.chunk(spec, experiment.dataset.input_shape())
    if place.chunk_size == "auto" and chunk is not None:
        chunk = 1  # Hessian products of images on a CPU: without vmap its convolutions are faster
    return TaskSample(place.move_task(drawn), chunk)


def draw_implicit(rows: Sequence[Row], own: Mapping[str, Any]) -> list[Drawing]:
    """A map for each measure that these rows have, with a frame around the run's `own` setting."""
    strengths, steps = (sorted({r[axis] for r in rows}) for axis in ("prox", "cg_steps"))
    at = {(r["prox"], r["cg_steps"]): r for r in rows}
    marked = [(strengths.index(own["prox"]), steps.index(own["cg_steps"]))] if rows else []
    drawings = []
    for name, what in SHOWN.items():
        if any(r.get(name) is not None for r in rows):
            grid = [[at[p, k].get(name) for k in steps] for p in strengths]
            maps = [("lambda", strengths, grid)]
            drawings.append(heat_map(name, what, maps, "conjugate-gradient steps", steps, marked))
    return drawings
