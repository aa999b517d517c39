r"""Fixed point: where a learner's expected meta-gradient vanishes, and how fast plain descent gets there.

Where the network is linear in theta, the loss is the squared error and adaptation is made of plain gradient steps or of
the solution of a linear system, the meta-gradient of a task is an affine function of theta, and so is its mean:

    g(theta) = G theta - b,    theta* = G^-1 b,    theta_t - theta* = (I - eta G)^t (theta_0 - theta*)

The last one is gradient descent with the rate eta: it converges for eta < 2 / max |lambda(G)| if G is symmetric, as
fast as max |1 - eta lambda(G)|. G and b are read off g at 0 and at each unit vector, averaged over `tasks` training
tasks, in float64; g at one more point checks that it is affine. Nothing depends on which learner it is, so that one of
your own may be given. `joint` is the same without adaptation: theta_J minimises the query loss of theta itself.

Errors are those of a jackknife over 20 parts of the tasks; test errors are compared task by task. Symbols: d numbers in
theta, G [d, d], b [d], lambda eigenvalues. docs/theory.md has the closed forms of data=linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch.func import grad

from metarun.analyses.analysis import Cell, Context, Row, require_at_least
from metarun.compute.task_axis import map_tasks
from metarun.diagnostics.optimum import Affine, flatten, in_double, read_affine, solve, unflatten
from metarun.errors import UserError
from metarun.report.figures.drawing import COLOURS, DASHES, MARKERS, Drawing, finish
from metarun.report.statistics.intervals import t_interval
from metarun.report.statistics.student import t_quantile
from metarun.storage.text import axis_label, count_nouns
from metarun.training.evaluation import EPISODE_SEED, adaptation_curves
from metarun.types import NOT_WEIGHTS, AlgorithmOptions, DatasetOptions, Params, Task, optional

PARTS = 20
MOST = 256  # numbers in theta: g is taken at as many points
STARTS = {"trained": "this run", "fixed_point": "its fixed point", "joint": "joint training"}

Array = np.ndarray


@dataclass(frozen=True)
class FixedPoint:
    tasks: int
    test_tasks: int

    def __post_init__(self) -> None:
        require_at_least(self, tasks=PARTS, test_tasks=2)

    def cells(self, context: Context) -> Sequence[Cell]:
        """One cell for each part of the tasks."""
        theta = context.run.params
        size = sum(p.numel() for p in theta.values())
        if size > MOST:
            raise UserError(f"analysis=fixed_point: theta has {size} numbers; at most {MOST}, as with model=linear")
        if others := [name for name in theta if name.startswith(NOT_WEIGHTS)]:
            raise UserError(f"analysis=fixed_point: no learned {others[0]}, in which a meta-gradient is not affine")
        return [{"first_task": i * (self.tasks // PARTS), "tasks": self.tasks // PARTS} for i in range(PARTS)]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        """G and b of a part of the tasks, with and without adaptation."""
        experiment, learner = context.run.experiment, context.run.experiment.algorithm
        chosen = range(cell["first_task"], cell["first_task"] + cell["tasks"])
        drawn = experiment.dataset.episodes("train", EPISODE_SEED, 0, chosen, experiment.train_spec)
        tasks = in_double(experiment.placement.move_task(drawn))
        chunk = experiment.placement.chunk(experiment.train_spec, experiment.dataset.input_shape())
        over_tasks = map_tasks(learner.meta_grad, len(chosen), chunk)

        def joint(params: Params, tasks: Task) -> Params:
            x, y = (part.flatten(0, 1) for part in tasks.query)
            return grad(lambda at: learner.loss(learner.model.apply(at, x), y))(params)

        def adapted(params: Params, tasks: Task) -> Params:
            return {name: g.mean(0) for name, g in over_tasks(params, tasks)[0].items()}

        matrix, shift = require_affine(lambda at: adapted(at, tasks), context.run.params)
        joint_matrix, joint_shift = require_affine(lambda at: joint(at, tasks), context.run.params)
        return {
            "matrix": matrix.tolist(),
            "shift": shift.tolist(),
            "joint_matrix": joint_matrix.tolist(),
            "joint_shift": joint_shift.tolist(),
        }

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        matrices, shifts = (np.array([row[name] for row in rows]) for name in ("matrix", "shift"))
        point, error = jackknife(solve, matrices, shifts)
        joint = solve(*(np.mean([row[name] for row in rows], 0) for name in ("joint_matrix", "joint_shift")))
        trained = flatten(context.run.params)
        eigenvalues = np.linalg.eigvals(matrices.mean(0))
        optim = context.config.optim
        summary: dict[str, Any] = {
            "fixed_point": point.tolist(),
            "standard_error": error.tolist(),
            "joint": joint.tolist(),
            "trained": trained.tolist(),
            "distance_trained": float(np.linalg.norm(trained - point)),
            "distance_joint": float(np.linalg.norm(joint - point)),
            "distance_error": float(np.linalg.norm(error)),
            "least_eigenvalue": float(eigenvalues.real.min()),
            "largest_eigenvalue": float(np.abs(eigenvalues).max()),
            "largest_rate": float(2 / np.abs(eigenvalues).max()),
            "contraction": float(np.abs(1 - optim.lr * eigenvalues).max()) if optim.name == "sgd" else None,
        }
        summary |= self._test(context, {"trained": trained, "fixed_point": point, "joint": joint})
        return summary | {"message": _describe(summary)}

    def _test(self, context: Context, starts: dict[str, Array]) -> dict[str, Any]:
        """Mean test loss after each adaptation step from each start, and the excess of this run's over the fixed
        point's, task by task."""
        experiment, learner = context.run.experiment, context.run.experiment.tested
        episode: Any = ("test", EPISODE_SEED, 0, range(self.test_tasks), experiment.test_spec)
        tasks = in_double(experiment.placement.move_task(experiment.dataset.episodes(*episode)))
        steps = range(learner.test_inner_steps + 1)
        chunk = experiment.placement.evaluation_chunk(experiment.test_spec, experiment.dataset.input_shape())
        scores = {
            name: adaptation_curves(learner, unflatten(start, context.run.params), tasks, steps, chunk)[1].numpy()
            for name, start in starts.items()
        }
        after = min(optional(learner, AlgorithmOptions, "inner_steps") or steps[-1], steps[-1])
        excess = t_interval(scores["trained"][:, after] - scores["fixed_point"][:, after])
        oracle = optional(experiment.dataset, DatasetOptions, "oracle")
        best = oracle(*episode).get(learner.loss.metric) if oracle else None
        return {
            "metric": learner.loss.metric,
            "curves": {name: values.mean(0).tolist() for name, values in scores.items()},
            "after": after,  # as many steps as in training
            "excess": excess.mean,
            "excess_ci95": excess.half,
            "best_possible": float(best.mean()) if best is not None else None,
        }

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        """Test error after each adaptation step, from each start."""
        figure = Figure(figsize=(6.2, 3.2))
        axes = figure.add_axes((0.12, 0.17, 0.85, 0.72))
        for i, (name, curve) in enumerate(summary["curves"].items()):
            axes.plot(curve, color=COLOURS[i], dashes=(), linestyle=DASHES[i], marker=MARKERS[i], label=STARTS[name])
        if summary["best_possible"] is not None:
            axes.axhline(summary["best_possible"], color="black", linewidth=0.8, label="best predictor")
        axes.legend()
        values = np.array(list(summary["curves"].values()))
        finish(axes, "adaptation from three starts", "adaptation steps", axis_label(summary["metric"]), [values])
        return [Drawing("fixed_point", summary["message"], figure)]


def require_affine(gradient: Callable[[Params], Params], like: Params) -> Affine:
    """G and b of g(theta) = G theta - b. Raises `UserError` if g is not affine."""
    found = read_affine(gradient, like)
    if found is None:
        needed = "needs model=linear, the squared error, and inner steps of a fixed rate"
        raise UserError(f"analysis=fixed_point: this meta-gradient is not affine in theta; {needed}")
    return found


def jackknife(function: Callable[[Array, Array], Array], *parts: Array) -> tuple[Array, Array]:
    """`function` of the means of the parts [B, ...], and its standard error from leaving out one part at a time."""
    count = len(parts[0])
    whole = function(*(p.mean(0) for p in parts))
    left_out = np.array([function(*(np.delete(p, i, 0).mean(0) for p in parts)) for i in range(count)])
    return whole, np.sqrt((count - 1) * left_out.var(0))


def _describe(summary: dict[str, Any]) -> str:
    s = summary
    wide = t_quantile(0.975, PARTS - 1) * s["distance_error"]
    best = f", {s['best_possible']:.4g} by the best predictor" if s["best_possible"] is not None else ""
    after = {name: curve[s["after"]] for name, curve in s["curves"].items()}
    steps = count_nouns(s["after"], "adaptation step")
    lines = [
        f"this run is {s['distance_trained']:.3g} from the fixed point of its mean meta-gradient, which is known "
        f"to {wide:.1g}; that of joint training is {s['distance_joint']:.3g} from it",
        f"test {s['metric']} after {steps}: {after['trained']:.4g} from this run, {after['fixed_point']:.4g} from the "
        f"fixed point, {after['joint']:.4g} from joint training{best}",
        f"excess of this run over the fixed point {s['excess']:.3g} +- {s['excess_ci95']:.2g}, task by task",
        f"eigenvalues of its matrix from {s['least_eigenvalue']:.3g} to {s['largest_eigenvalue']:.3g}: plain gradient "
        f"descent is stable below a rate of {s['largest_rate']:.3g}",
    ]
    if s["least_eigenvalue"] <= 0:
        lines.append("an eigenvalue is not above 0: descent moves away from the fixed point along it")
    if s["contraction"] is not None and math.isfinite(s["contraction"]):
        lines.append(f"at this run's rate the distance falls by a factor of {s['contraction']:.4g} a step")
    return "\n".join(lines)
