r"""How adaptation stretches a change of theta: J = d phi_K / d theta, K = `inner_steps`, on probe tasks.

Theta and phi are the network's weights; other meta-parameters are constants.

    gradient descent   J = prod_k (I - alpha H(phi_k)), whose transpose every meta-gradient multiplies grad L^Q by

jacobian_growth   mean of log |J^T v| over tasks and a few random unit vectors v, the same every time. 0: lengths stay
                  as they are. Growth in proportion to K means chaos, and noisy meta-gradients (arXiv 2111.05803)
jacobian_norm     |J|_2, mean over tasks: the root of the largest eigenvalue of J^T J by Lanczos, so from below. A
                  random v has about 1 / sqrt(D) of its length along the worst of the D directions, hence this one
                  too. For networks of less than 20 000 weights: a product costs as much as two meta-gradients
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vjp

from metarun.compute.linalg import norm
from metarun.diagnostics.lanczos import directions, extremes
from metarun.diagnostics.task_sample import SMALL_MODEL, TaskSample, adapted_weights, network_weights
from metarun.types import Batch, GradientLearner, Metrics, Params, Task

VECTORS = 4
SEED = 1
"""Of the random vectors, the same for every task, probe and run."""


def jacobian_measures(learner: GradientLearner, params: Params, sample: TaskSample, steps: int) -> dict[str, float]:
    """Measure the Jacobian; its norm by `steps` products with J^T J."""
    weights = network_weights(params)
    start, *vectors = directions(weights, 1 + VECTORS, SEED)
    small = sum(w.numel() for w in weights.values()) < SMALL_MODEL

    def measure_one(theta: Params, task: Task) -> tuple[Metrics, Metrics]:
        metrics = {"jacobian_growth": growth(learner, theta, task.support, vectors)}
        if small:
            metrics["jacobian_norm"] = spectral_norm(learner, theta, task.support, start, steps)
        return metrics, {}

    return sample.mean(measure_one, params)


def growth(learner: GradientLearner, theta: Params, support: Batch, vectors: list[Params]) -> Tensor:
    """Mean of log |J^T v| over unit vectors, of one task."""
    pullback, _ = transposed_jacobian(learner, theta, support)
    return torch.stack([norm(pullback(v)).log() for v in vectors]).mean()


def spectral_norm(learner: GradientLearner, theta: Params, support: Batch, start: Params, steps: int) -> Tensor:
    """|J|_2 of one task."""
    pullback, phi = transposed_jacobian(learner, theta, support)
    # u -> J^T u is linear, so its own pullback, taken anywhere, is v -> J v. Forward mode fails on vmap's zeros.
    push = vjp(pullback, phi)[1]
    square = extremes(lambda v: pullback(push(v)[0]), start, steps).largest
    return square.clamp_min(0).sqrt()


def transposed_jacobian(
    learner: GradientLearner, theta: Params, support: Batch
) -> tuple[Callable[[Params], Params], Params]:
    """u -> J^T u of one task, and phi."""

    def adapt(weights: Params) -> Params:
        return network_weights(adapted_weights(learner, theta | weights, support))

    phi, pullback = vjp(adapt, network_weights(theta))[:2]
    return lambda u: pullback(u)[0], phi
