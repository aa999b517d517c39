r"""The cost of a meta-gradient: error, memory and time of ways to differentiate one inner problem, by inner steps.

    phi* = argmin_phi  L^S(phi) + (lambda/2) |phi - theta|^2;    g* = d/dtheta L^Q(phi*(theta))

theta are the weights of the run, of any learner by gradient descent; its penalties are no part of the problem. Every
way first takes K steps of gradient descent, of the rate `inner_lr`. With n = `products` they are

    unrolled       through all K steps, as MAML
    checkpointed   the same gradient by segments of steps (algorithms/differentiation.py, as the next two)
    truncated      through the last n steps alone
    first-order    grad L^Q(phi_K)
    iMAML, CG      the implicit gradient at phi_K, by n steps of conjugate gradient (algorithms/imaml.py)
    iMAML, 1 CG    by a single one
    iMAML, Neumann by n terms of the Neumann series

error       |g - g*| / |g*| of a test task, the median over tasks, with the least and the largest
cosine      cos(g, g*), the median over tasks
peak_bytes  of one task: the largest total of the tensors that the meta-gradient creates and that are alive at once, its
            result and the graph that autograd keeps with them. It counts the storage of every tensor
            (training/memory.py), so it is exact and the same each time; not counted are theta, the task, what one
            kernel needs inside itself, and what an allocator keeps in stock
time        seconds of one task's meta-gradient, median of `repeats`, divided by those of one inner gradient,
            grad (L^S + (lambda/2) |. - theta|^2), measured in turns with it; on a CPU seconds of this process, all
            threads together

Errors are those of float64, so that they are of the way and not of rounding; memory and time are in the run's
precision. g* is iMAML's after `reference_steps` accelerated inner steps and `reference_cg_steps` of conjugate gradient.
How near it came stands in the row `reference`, the largest over tasks: `stationarity` =
|grad (L^S + (lambda/2) |. - theta|^2)(phi)| / |grad L^S(theta)|, and `cg_residual`. Errors are over the tasks on which
both are at most `tolerance`, if there are any. Where a minimiser lies at a kink of a ReLU no gradient vanishes, however
many steps are taken, and there is no g*: small networks with smooth activations have one.

Rajeswaran, Finn, Kakade, Levine 2019, arXiv 1909.04630, figure 2: the memory of iMAML does not grow with K.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from metarun.algorithms.differentiation import (
    Checkpointed,
    Differentiation,
    FirstOrder,
    Truncated,
    Unrolled,
    segment_length,
)
from metarun.algorithms.imaml import IMAML
from metarun.analyses.analysis import Cell, Context, Row, known_values, require_at_least, require_different
from metarun.analyses.figures import finish_sizes, plot_known
from metarun.compute.linalg import gradient, sub
from metarun.diagnostics.meta_gradients import cosine, relative
from metarun.diagnostics.task_sample import TaskSample, draw_sample, network_weights
from metarun.errors import SettingError, UserError, require
from metarun.report.figures.drawing import Drawing, legend_below, look, panels
from metarun.storage import atomic
from metarun.storage.text import NOTHING, count_nouns
from metarun.training.evaluation import EPISODE_SEED
from metarun.training.experiment import Experiment
from metarun.training.memory import MB, peak_bytes
from metarun.types import AlgorithmOptions, Batch, GradientLearner, Metrics, Params, Task, optional

REFERENCE = "reference"
METHODS = (
    "unrolled", "checkpointed", "truncated", "first-order", "iMAML, CG", "iMAML, 1 CG", "iMAML, Neumann",
)  # fmt: skip

NEARNESS = ("stationarity", "cg_residual")
PANELS = (
    ("error", "Error, median task", "|g - g*| / |g*|", 1),
    ("peak_bytes", "Peak memory of a task, MB", "", MB),
    ("time", "Time", "inner gradients", 1),
)
"""Key of a row, title, label of the axis (none beside long numbers), unit."""

MetaGrad = Callable[[Params, Task], tuple[Params, Metrics]]


@dataclass(frozen=True)
class ImplicitCost:
    inner_steps: tuple[int, ...]  # K
    products: int  # n
    prox: float | None  # lambda; None: the run's
    inner_lr: float | None  # None: the run's
    tasks: int  # test episodes
    repeats: int  # of a time
    reference_steps: int
    reference_cg_steps: int
    tolerance: float

    def __post_init__(self) -> None:
        require_different(self, "inner_steps")
        require_at_least(self, products=1, tasks=1, repeats=1, reference_steps=1, reference_cg_steps=1)
        for name in ("prox", "inner_lr"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "must be above 0, or null for the run's")
        require(self.tolerance > 0, "tolerance", self.tolerance, "must be above 0")

    def cells(self, context: Context) -> Sequence[Cell]:
        self.learner(context.run.experiment)
        ways = [{"method": m, "inner_steps": k} for k in sorted(self.inner_steps) for m in METHODS]
        return [{"method": REFERENCE, "inner_steps": self.reference_steps}, *ways]

    def learner(self, experiment: Experiment) -> IMAML:
        """The inner problem of the run's network, descended at a fixed rate."""
        own = experiment.tested
        if not isinstance(own, GradientLearner):
            raise UserError("analysis=implicit_cost: this run's algorithm has no inner loop to differentiate")
        prox = self.prox or optional(own, AlgorithmOptions, "prox")
        if not prox:
            raise SettingError("analysis.prox", None, "this run has no lambda; choose one, as analysis.prox=2")
        steps, adapted = max(self.inner_steps), own.inner_rule.adapted
        rate = self.inner_lr or own.inner_lr
        return IMAML(own.model, own.loss, prox, rate, steps, steps, self.products, 0.0, adapted=adapted)

    def way(self, method: str, learner: IMAML) -> MetaGrad:
        """The meta-gradient of one task by a method."""
        implicit = {
            "iMAML, CG": learner,
            "iMAML, 1 CG": replace(learner, cg_steps=1),
            "iMAML, Neumann": replace(learner, linear_solver="neumann"),
        }
        if method in implicit:
            return implicit[method].meta_grad
        through: dict[str, Differentiation] = {
            "unrolled": Unrolled(),
            "checkpointed": Checkpointed(segment_length(True, learner.inner_steps)),
            "truncated": Truncated(self.products),
            "first-order": FirstOrder(),
        }
        return partial(through[method].meta_grad, learner)

    def sample(self, experiment: Experiment) -> TaskSample:
        spec, placement = experiment.test_spec, experiment.placement
        return draw_sample(experiment.dataset, "test", EPISODE_SEED, 0, self.tasks, spec, placement)

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        experiment = context.assemble({"device.precision": "float64"})
        params = experiment.placement.move_params(network_weights(context.run.params))
        learner, sample = self.learner(experiment), self.sample(experiment)
        exact, nearness = self.read_reference(context.folder / f"{REFERENCE}.pt", learner, params, sample)
        sound = torch.stack([nearness[name] <= self.tolerance for name in NEARNESS]).all(0)
        if cell["method"] == REFERENCE:
            return {name: float(nearness[name].max()) for name in NEARNESS} | {"exact_tasks": int(sound.sum())}
        learner = replace(learner, inner_steps=cell["inner_steps"])
        found = sample.each(self.way(cell["method"], learner), params)[0]
        compared = vmap(lambda g, best: (relative(sub(g, best), best), cosine(g, best)))(found, exact)
        errors, cosines = (values[sound].cpu().numpy() for values in compared)
        row = self.measure_cost(context, cell)
        if len(errors):
            row |= {"error": float(np.median(errors)), "cosine": float(np.median(cosines))}
            row |= {"error_low": float(errors.min()), "error_high": float(errors.max())}
        return row

    def measure_cost(self, context: Context, cell: Cell) -> dict[str, Any]:
        """Memory and time of one task, in the run's precision."""
        experiment, params = context.run.experiment, network_weights(context.run.params)
        task = select_task(self.sample(experiment).tasks)
        learner = replace(self.learner(experiment), inner_steps=cell["inner_steps"])
        way, objective = self.way(cell["method"], learner), learner.inner_objective(params, task.support)
        actions = partial(way, params, task), partial(gradient, lambda at: objective(at, 0), params)
        with torch.no_grad():
            peak = peak_bytes(actions[0])  # a first run of what is timed, too
            actions[1]()
            device = experiment.placement.device
            seconds = [[clock(action, device) for action in actions] for _ in range(self.repeats)]
        whole, single = np.median(seconds, axis=0)
        return {"peak_bytes": peak, "time": float(whole / single), "gradient_seconds": float(single)}

    def read_reference(
        self, path: Path, learner: IMAML, params: Params, sample: TaskSample
    ) -> tuple[Params, dict[str, Tensor]]:
        """g* [T, ...] and how near it is to exact [T]: computed once, then read from the analysis's folder."""
        if not path.exists():
            accelerated = replace(
                learner, inner_solver="nesterov", inner_steps=self.reference_steps, cg_steps=self.reference_cg_steps
            )
            exact, metrics = sample.each(accelerated.meta_grad, params)
            buffer = io.BytesIO()
            torch.save((exact, {name: metrics[name] for name in NEARNESS}), buffer)
            atomic.replace(path, buffer.getvalue())
        return torch.load(path, map_location=sample.tasks.support.x.device, weights_only=True)

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        learner = self.learner(context.run.experiment)
        reference, *ways = rows
        most = max(self.inner_steps)
        at_most = {r["method"]: r for r in ways if r["inner_steps"] == most}
        summary: dict[str, Any] = {"prox": learner.prox, "inner_lr": learner.inner_lr, "products": self.products}
        summary |= {"tasks": self.tasks, **{k: reference[k] for k in (*NEARNESS, "exact_tasks")}}
        lines = [
            f"reference: exact on {reference['exact_tasks']} of {count_nouns(self.tasks, 'task')} "
            f"(stationarity {reference['stationarity']:.1e}, residual {reference['cg_residual']:.1e} at most)",
            f"after {count_nouns(most, 'inner step')}, lambda {learner.prox:g}, rate {learner.inner_lr:g}:",
        ]
        for method, row in at_most.items():
            error = NOTHING if row.get("error") is None else f"{row['error']:.1e}"
            lines.append(
                f"{method}: error {error}, {row['peak_bytes'] / MB:.3g} MB, time of {row['time']:.3g} inner gradients"
            )
        return summary | {"message": "\n".join(lines)}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        measured = [panel for panel in PANELS if known_values(rows, panel[0], 1.0)]  # there may be no error
        figure, axes = panels(len(measured), legend=len(METHODS))
        for i, method in enumerate(METHODS):
            found = [r for r in rows if r["method"] == method]
            style: dict[str, Any] = {"color": look(i).colour, "linestyle": look(i).dash, "marker": look(i).marker}
            for panel, (key, _, _, unit) in zip(axes, measured, strict=True):
                values = [None if r.get(key) is None else r[key] / unit for r in found]
                plot_known(panel, [r["inner_steps"] for r in found], values, **style, label=method)
        for panel, (key, title, label, unit) in zip(axes, measured, strict=True):
            shown = np.array(known_values(rows, key, 1 / unit))
            finish_sizes(panel, title, "inner steps", label, sorted(self.inner_steps), shown)
            panel.set_yscale("log")
        legend_below(figure, *axes[0].get_legend_handles_labels())
        alt = f"Error, memory and time of meta-gradients by inner steps. {' '.join(summary['message'].splitlines())}"
        return [Drawing("implicit_cost", alt, figure)]


def select_task(tasks: Task) -> Task:
    """The first of tasks with a leading T axis."""
    return Task(*(Batch(b.x[0], b.y[0]) for b in tasks))


def clock(action: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the action: of a GPU until its work is done, of a CPU those of this process, which no other slows."""
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    now = time.process_time if device.type == "cpu" else time.perf_counter
    wait()
    start = now()
    action()
    wait()
    return now() - start
