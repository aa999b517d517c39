r"""Meta-gradients on probe tasks: of the true objective, the error of cheaper ones, and how rough the objective is.

    F(theta) = mean over the T probe tasks of L^Q(phi_K(theta)), K = `inner_steps`;   g_i its gradients, gbar their mean

For a learner that descends an objective, g_i is differentiated through all K steps, whatever it steps along itself; for
any other it is the learner's own meta-gradient, and F its `loss`. The regularizer is no part of F. Gradients are by the
network's weights alone: learned rates and a penalty's own meta-parameters are constants.

probe_loss           F(theta)
true_grad_norm2_raw  |gbar|^2
true_grad_norm2      |gbar|^2 - tr Cov / T, unbiased for the squared gradient of the expected loss over all tasks (so it
                     may be below 0), tr Cov = (1/(T-1)) sum_i |g_i - gbar|^2
first_order_cosine, first_order_ratio
                     cos(f, gbar) and |f| / |gbar|, f the mean of grad L^Q at phi_K: what first-order learners leave out
                     (arXiv 1908.10400)
meta_grad_cosine, meta_grad_ratio, meta_grad_error
                     cos(m, gbar), |m| / |gbar| and |m - gbar| / |gbar|, m the mean of the learner's own meta-gradients:
                     1, 1, 0 where it is the gradient of F. Reptile's is theta - phi, of which only the direction counts
sharpness            F(theta + r gbar / |gbar|) - F(theta), r = `radius` (Sharp-MAML, arXiv 2206.03996)
smoothness           |grad F(theta + r gbar / |gbar|) - gbar| / r, to be read against |gbar|, with which it may grow
                     (arXiv 2409.03682)
implicit_error       |m_i - u_i| / |u_i|, mean over tasks, of proximal learners: m_i the learner's own meta-gradient,
                     u_i = d/dtheta L^Q(phi_U(theta)) through U = `unroll_steps` steps of the same inner loop. It holds
                     all errors of m_i: an inner loop that stopped early, a linear system solved roughly or
                     damped, negative curvature (Rajeswaran et al. 2019, arXiv 1909.04630)
implicit_cosine      cos(m_i, u_i), mean over tasks
unroll_stationarity  |grad objective(phi_U)| / |grad objective(theta)|, mean over tasks: how near a minimiser U steps
                     came. Where it is not small, u_i is no limit either: raise diagnostics.unroll_steps. Where it
                     stays, the loop may be bouncing at a kink of a ReLU, which is no stationary point
jacobian_growth      of J = d phi_K / d theta, mean of log |J^T v| over tasks and a few random unit vectors v, the same
                     every time. In gradient descent J = prod_k (I - alpha H(phi_k)), and every meta-gradient is J^T
                     grad L^Q. 0: lengths stay as they are. Growth in proportion to K means chaos, and noisy
                     meta-gradients (arXiv 2111.05803)
jacobian_norm        |J|_2, mean over tasks: the root of the largest eigenvalue of J^T J by Lanczos, so from below. A
                     random v has about 1 / sqrt(D) of its length along the worst of the D directions, hence this one
                     too

`jacobian_norm` and the implicit measures are for networks of less than 20 000 weights: a product with J^T J costs as
much as two meta-gradients, and the memory of u_i grows with U.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vjp

from metarun.algorithms.inner_loop import last, start
from metarun.compute.linalg import axpy, dot, norm, scale, sub
from metarun.diagnostics.lanczos import directions, extremes
from metarun.diagnostics.task_sample import SMALL_MODEL, TaskSample, adapted_weights, mean_gradient, network_weights
from metarun.types import Algorithm, Batch, GradientLearner, Metrics, Params, ProximalLearner, Task

VECTORS = 4
SEED = 1
"""Of the random vectors, the same for every task, probe and run."""


def unrolled_gradient(learner: GradientLearner, theta: Params, task: Task, steps: int) -> tuple[Params, Tensor]:
    """d/dtheta L^Q(phi_steps(theta)) of one task, through all steps, and that loss."""

    def outer(theta: Params) -> Tensor:
        adapted = last(learner.adaptations(theta, task.support, steps))
        return learner.loss(learner.predict(adapted, task.query.x), task.query.y)

    gradient, loss = grad_and_value(outer)(theta)
    return network_weights(gradient), loss


def first_order_gradient(learner: GradientLearner, theta: Params, task: Task) -> Params:
    """grad L^Q of one task at phi, as if phi were phi_0 plus a constant."""

    def outer(phi: Params) -> Tensor:
        stats = learner.model.query_stats(phi, task.support.x)
        return learner.loss(learner.model.apply(phi, task.query.x, stats), task.query.y)

    by_phi = grad(outer)(adapted_weights(learner, theta, task.support))
    pull_back = vjp(lambda theta: start(learner, theta, task.support), theta)[1]
    return network_weights(pull_back(by_phi)[0])


def true_gradient(algorithm: Algorithm, theta: Params, task: Task) -> tuple[Params, Tensor]:
    """g_i of one task, and its L^Q."""
    if isinstance(algorithm, GradientLearner):
        return unrolled_gradient(algorithm, theta, task, algorithm.inner_steps)
    g, metrics = algorithm.meta_grad(theta, task)
    return network_weights(g), metrics["loss"]


def true_gradients(algorithm: Algorithm, params: Params, sample: TaskSample) -> tuple[Params, Tensor]:
    """g_i [T, ...] and the losses [T] whose mean is F."""

    def measure_one(theta: Params, task: Task) -> tuple[Params, Metrics]:
        g, loss = true_gradient(algorithm, theta, task)
        return g, {"loss": loss}

    grads, metrics = sample.each(measure_one, params)
    return grads, metrics["loss"].double()


def objective_measures(
    algorithm: Algorithm, params: Params, sample: TaskSample, radius: float
) -> tuple[dict[str, float], Params]:
    """Measure F, the norm of its gradient, its sharpness and smoothness; return gbar as well."""
    grads, losses_T = true_gradients(algorithm, params, sample)
    gbar = mean_gradient(grads)
    uphill = scale(1 / norm(gbar).clamp_min(tiny(gbar)), gbar)
    beyond, risen_T = true_gradients(algorithm, params | axpy(radius, uphill, network_weights(params)), sample)
    values = {"probe_loss": float(losses_T.mean()), **squared_norms(grads)}
    values["sharpness"] = float((risen_T - losses_T).mean())
    values["smoothness"] = float(norm(sub(mean_gradient(beyond), gbar))) / radius
    return values, gbar


def squared_norms(grads: Params) -> dict[str, float]:
    """|gbar|^2, debiased (of two tasks or more) and raw."""
    gbar = mean_gradient(grads)
    raw = float(dot(gbar, gbar))
    tasks = len(next(iter(grads.values())))
    if tasks == 1:
        return {"true_grad_norm2_raw": raw}
    away = sub(grads, gbar)
    variance = float(dot(away, away)) / (tasks - 1)
    return {"true_grad_norm2": raw - variance / tasks, "true_grad_norm2_raw": raw}


def bias_measures(learner: GradientLearner, params: Params, sample: TaskSample, gbar: Params) -> dict[str, float]:
    """Compare first-order and the learner's own meta-gradients with gbar."""
    first = mean_gradient(sample.each(lambda at, task: (first_order_gradient(learner, at, task), {}), params)[0])
    own = network_weights(mean_gradient(sample.each(learner.meta_grad, params)[0]))
    return {
        "first_order_cosine": float(cosine(first, gbar)),
        "first_order_ratio": float(relative(first, gbar)),
        "meta_grad_cosine": float(cosine(own, gbar)),
        "meta_grad_ratio": float(relative(own, gbar)),
        "meta_grad_error": float(relative(sub(own, gbar), gbar)),
    }


def implicit_measures(learner: ProximalLearner, params: Params, sample: TaskSample, steps: int) -> dict[str, float]:
    """Compare with unrolled meta-gradients; empty for a network that is not small."""
    if sum(p.numel() for p in network_weights(params).values()) >= SMALL_MODEL:
        return {}

    def measure_one(theta: Params, task: Task) -> Metrics:
        own = network_weights(learner.meta_grad(theta, task)[0])
        unrolled, _ = unrolled_gradient(learner, theta, task, steps)
        return {
            "implicit_error": relative(sub(own, unrolled), unrolled),
            "implicit_cosine": cosine(own, unrolled),
            "unroll_stationarity": stationarity(learner, theta, task.support, steps),
        }

    return sample.mean(measure_one, params)


def stationarity(learner: GradientLearner, theta: Params, support: Batch, steps: int) -> Tensor:
    """|grad objective(phi_steps)| / |grad objective(theta)| of one task."""
    objective = learner.inner_objective(theta, support)

    def gradient(at: Params) -> Params:
        return network_weights(grad(objective)(at, 0))

    phi = last(learner.adaptations(theta, support, steps)).params
    return relative(gradient(phi), gradient(theta))


def jacobian_measures(learner: GradientLearner, params: Params, sample: TaskSample, steps: int) -> dict[str, float]:
    """Measure the Jacobian; its norm by `steps` products with J^T J."""
    weights = network_weights(params)
    start, *vectors = directions(weights, 1 + VECTORS, SEED)
    small = sum(w.numel() for w in weights.values()) < SMALL_MODEL
    steps = steps if small else 0
    return sample.mean(
        lambda theta, task: measure_jacobian(learner, theta, task.support, vectors, start, steps), params
    )


def measure_jacobian(
    learner: GradientLearner, theta: Params, support: Batch, vectors: list[Params], start: Params, steps: int
) -> Metrics:
    """Of one task: the mean of log |J^T v| over unit vectors v, and |J|_2 unless `steps` is 0."""

    def adapt(weights: Params) -> Params:
        return network_weights(adapted_weights(learner, theta | weights, support))

    phi, pullback = vjp(adapt, network_weights(theta))[:2]
    metrics = {"jacobian_growth": torch.stack([norm(pullback(v)[0]).log() for v in vectors]).mean()}
    if steps:
        # u -> J^T u is linear, so its own pullback, taken anywhere, is v -> J v. Forward mode fails on vmap's zeros.
        push = vjp(lambda u: pullback(u)[0], phi)[1]
        square = extremes(lambda v: pullback(push(v)[0])[0], start, steps).largest
        metrics["jacobian_norm"] = square.clamp_min(0).sqrt()
    return metrics


def cosine(x: Params, y: Params) -> Tensor:
    """cos(x, y); 0 where one of them is 0."""
    unit_x, unit_y = (scale(1 / norm(v).clamp_min(tiny(v)), v) for v in (x, y))
    return dot(unit_x, unit_y).clamp(-1, 1)


def relative(x: Params, y: Params) -> Tensor:
    """|x| / |y|."""
    return norm(x) / norm(y).clamp_min(tiny(y))


def tiny(x: Params) -> float:
    """The least positive number of its precision, to divide by where a length is 0."""
    return torch.finfo(next(iter(x.values())).dtype).tiny
