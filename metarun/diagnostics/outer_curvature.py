r"""How near the outer step is to the edge of stability, on probe tasks.

    F(theta) = mean over the T probe tasks of L^Q(phi_K(theta)),   H its Hessian by the network's weights [D, D]
    outer_rate_curvature = largest eigenvalue of R^(1/2) H R^(1/2),   R = diag(rates)

R has the rate of each weight in the step that was made last, smoothing included (`training/optimizer.py`):

    gradient descent            lr
    with momentum b             lr / (1 + b)
    Adam                        lr / (sqrt(v_hat) + eps) * (1 - beta_1) / (1 + beta_1)

so that on a quadratic F, by exact gradients and with v_hat as it is, the outer steps diverge above 2 whatever the
optimizer. On networks training by all of the data often rises to that edge and stays there (Cohen et al. 2021, arXiv
2103.00065; of Adam, Cohen et al. 2022, arXiv 2207.14484, whose 38 / lr this is for beta_1 = 0.9); the noise of few
tasks a step keeps it below. Far below 2 a higher rate is at least not unstable. `outer_hessian_residual` is
|A u - h u| / |h| of that Ritz pair: an eigenvalue lies within that share (lanczos.py).

F is that of `meta_gradients.py`: without penalties and weight decay. A product with H costs two to three meta-gradients
of all T tasks, so this is for networks of less than 20 000 weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vjp

from metarun.compute.linalg import flatten, unflatten
from metarun.diagnostics.lanczos import directions, lanczos
from metarun.diagnostics.meta_gradients import true_gradient
from metarun.diagnostics.task_sample import SMALL_MODEL, TaskSample, mean_gradient, network_weights
from metarun.types import Algorithm, Metrics, Params, Rates, Task

SEED = 2
"""Of the first Lanczos vector."""


def outer_curvature_measures(
    algorithm: Algorithm, params: Params, sample: TaskSample, rates: Rates, steps: int
) -> dict[str, float]:
    """Measure by `steps` products with H; empty for a network that is not small. `rates` are a number, or a tensor for
    each weight as `step_rates` has them."""
    weights = network_weights(params)
    if sum(w.numel() for w in weights.values()) >= SMALL_MODEL:
        return {}
    by_weight = rates if isinstance(rates, dict) else dict.fromkeys(weights, rates)
    root = flatten({k: torch.as_tensor(by_weight[k], dtype=w.dtype).expand_as(w).sqrt() for k, w in weights.items()})

    def product(u: Tensor) -> Tensor:
        v = unflatten(root * u, weights)

        def hessian_times_v(theta: Params, task: Task) -> tuple[Params, Metrics]:
            at = network_weights(theta)
            return vjp(lambda at: true_gradient(algorithm, theta | at, task)[0], at)[1](v)[0], {}

        return root * flatten(mean_gradient(sample.each(hessian_times_v, params)[0]))

    ritz = lanczos(product, flatten(directions(weights, 1, SEED)[0]), steps)
    largest = float(ritz.largest)
    residual = float(ritz.residual_largest) / max(abs(largest), torch.finfo(root.dtype).tiny)
    return {"outer_rate_curvature": largest, "outer_hessian_residual": residual}
