r"""An implicit meta-gradient against one that is differentiated through many inner steps, on probe tasks.

implicit_error       |m_i - u_i| / |u_i|, mean over tasks: m_i the learner's own meta-gradient, and
                     u_i = d/dtheta L^Q(phi_U(theta)) through U = `unroll_steps` steps of the same inner loop. It holds
                     all that m_i is wrong by: an inner loop that stopped early, a linear system solved roughly or
                     damped, negative curvature
implicit_cosine      cos(m_i, u_i), mean over tasks
unroll_stationarity  |grad objective(phi_U)| / |grad objective(theta)|, mean over tasks: how near a minimiser U steps
                     came. Where it is not small, u_i is no limit either: raise diagnostics.unroll_steps. Where it
                     stays, the loop may be bouncing at a kink of a ReLU, which is no stationary point

For networks of less than 20 000 weights, since the memory of u_i grows with U. Source: Rajeswaran et al. 2019, arXiv
1909.04630.
"""

from __future__ import annotations

from torch import Tensor
from torch.func import grad

from metarun.algorithms.inner_loop import last
from metarun.compute.linalg import sub
from metarun.diagnostics.meta_gradients import cosine, relative, unrolled_gradient
from metarun.diagnostics.task_sample import SMALL_MODEL, ProbeTasks, network_weights
from metarun.types import Batch, GradientLearner, Metrics, Params, ProximalLearner, Task


def implicit_measures(learner: ProximalLearner, params: Params, tasks: ProbeTasks, steps: int) -> dict[str, float]:
    """The measures by name; none for a network that is not small."""
    if sum(p.numel() for p in network_weights(params).values()) >= SMALL_MODEL:
        return {}

    def one(theta: Params, task: Task) -> tuple[Metrics, Metrics]:
        own = network_weights(learner.meta_grad(theta, task)[0])
        unrolled, _ = unrolled_gradient(learner, theta, task, steps)
        return {
            "implicit_error": relative(sub(own, unrolled), unrolled),
            "implicit_cosine": cosine(own, unrolled),
            "unroll_stationarity": stationarity(learner, theta, task.support, steps),
        }, {}

    return tasks.mean(one, params)


def stationarity(learner: GradientLearner, theta: Params, support: Batch, steps: int) -> Tensor:
    """|grad objective(phi_steps)| / |grad objective(theta)| of one task."""
    objective = learner.inner_objective(theta, support)

    def gradient(at: Params) -> Params:
        return network_weights(grad(objective)(at, 0))

    phi = last(learner.adaptations(theta, support, steps)).params
    return relative(gradient(phi), gradient(theta))
