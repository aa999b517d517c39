r"""Curvature of the inner problem at its start and at its end, on probe tasks.

hessian_max_theta, hessian_min_theta, hessian_max_phi, hessian_min_phi
                    extreme eigenvalues of the Hessian of L^S, the mean loss of the whole support set, at theta and at
                    phi after `inner_steps`; mean over tasks. Unit: loss per squared weight
hessian_residual_*  |H v - h v| of that Ritz pair over the larger modulus of both ends, of the worst task: an
                    eigenvalue lies within that share. Both ends are estimated from inside (lanczos.py)
rate_curvature      inner_lr * (largest eigenvalue of the inner objective's Hessian at theta), mean over tasks, and
                    rate_curvature_max of the worst. Beyond 2 gradient descent on a quadratic diverges (Cohen et al.
                    2021, arXiv 2103.00065). The objective is the learner's own at step 0: with its proximal term
                    and its mini-batch. Left out for inner rules that are not plain gradient descent
prox_margin         smallest eigenvalue of the inner objective's Hessian at phi, of the worst task, for proximal
                    learners: lambda + that of L^S, and what other inner penalties add. Above 0 the inner problem is
                    strongly convex there, which the implicit gradient of arXiv 1909.04630 needs

Networks with ReLU or max-pooling have no second derivative at kinks and ties: this is the curvature of their smooth
pieces. Batch statistics are those of the support set, as in adaptation. Derivatives are by the network's weights, those
of the inner objective by the weights that the inner loop adapts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from metarun.algorithms import inner_loop
from metarun.algorithms.inner_loop import is_adapted
from metarun.algorithms.objective import Entry
from metarun.compute.linalg import hessian_product
from metarun.diagnostics.lanczos import Ritz, directions, extremes
from metarun.diagnostics.task_sample import TaskSample, adapted_weights, network_weights
from metarun.types import Batch, GradientLearner, Metrics, Params, ProximalLearner

SEED = 0
"""Of the first Lanczos vector, the same for every task, probe and run."""


def curvature_measures(learner: GradientLearner, params: Params, sample: TaskSample, steps: int) -> dict[str, float]:
    """Measure curvature, each spectrum by `steps` Hessian-vector products."""
    start = directions(network_weights(params), 1, SEED)[0]
    found = sample.measure(lambda theta, task: spectra(learner, theta, task.support, start, steps), params)
    ends = {name: values.double() for name, values in found.items()}
    values: dict[str, float] = {}
    for where in ("theta", "phi"):
        values |= {f"hessian_{end}_{where}": float(ends[f"{end}_{where}"].mean()) for end in ("max", "min")}
        residuals = {end: ends[f"residual_{end}_{where}"] for end in ("max", "min")}
        values |= {f"hessian_residual_{end}_{where}": float(v.max()) for end, v in residuals.items()}
    if is_gradient_descent(learner, params):
        rates_T = learner.inner_lr * ends["max_objective"]
        values |= {"rate_curvature": float(rates_T.mean()), "rate_curvature_max": float(rates_T.max())}
    if isinstance(learner, ProximalLearner):
        values["prox_margin"] = float(ends.get("min_objective_phi", learner.prox + ends["min_phi"]).min())
    return values


def spectra(learner: GradientLearner, theta: Params, support: Batch, start: Params, steps: int) -> Metrics:
    """Of one task: both ends of the Hessian of L^S at theta (or phi_0) and at phi; the largest eigenvalue of the inner
    objective's at theta, and the smallest at phi unless it is lambda + that of L^S."""
    theta = inner_loop.start(learner, theta, support)
    inner_objective = learner.inner_objective(theta, support)

    def support_loss(weights: Params) -> Tensor:
        return learner.loss(learner.model.apply(theta | weights, support.x), support.y)

    def objective(weights: Params) -> Tensor:
        return inner_objective(theta | weights, 0)

    def ends(function: Callable[[Params], Tensor], weights: Params) -> Ritz:
        return extremes(hessian_product(function, weights), {name: start[name] for name in weights}, steps)

    phi = adapted_weights(learner, theta, support)
    theta_adapted, phi_adapted = (
        {name: w for name, w in at.items() if is_adapted(name, learner.inner_rule)} for at in (theta, phi)
    )
    metrics: Metrics = {}
    for where, at in (("theta", theta), ("phi", phi)):
        ritz = ends(support_loss, network_weights(at))
        size = ritz.size.clamp_min(torch.finfo(ritz.size.dtype).tiny)
        metrics |= {f"max_{where}": ritz.largest, f"min_{where}": ritz.smallest}
        metrics |= {f"residual_max_{where}": ritz.residual_largest / size}
        metrics |= {f"residual_min_{where}": ritz.residual_smallest / size}
    metrics["max_objective"] = ends(objective, theta_adapted).largest
    if learner.regularization.select(Entry.INNER_LOSS) or len(phi_adapted) < len(start):
        metrics["min_objective_phi"] = ends(objective, phi_adapted).smallest
    return metrics


def is_gradient_descent(learner: GradientLearner, like: Params) -> bool:
    """Whether the inner rule's step is inner_lr times the gradient, also the second time: no momentum, no scaling, no
    learned rates."""
    rule = learner.inner_rule
    if math.isinf(rule.lr):
        return False
    adapted = {k: v for k, v in like.items() if is_adapted(k, rule)}
    state = rule.init(adapted, like)
    for g in directions(adapted, 2, SEED):
        step, state = rule.step(g, state)
        if not all(torch.allclose(step[k], learner.inner_lr * g[k]) for k in g):
            return False
    return True
