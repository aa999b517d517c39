r"""The measures of one outer step: of its meta-gradients, of a few tasks' inner loops, of penalties and of the update.

Of the meta-gradients g_1 .. g_T of the step's tasks, and gbar = (1/T) sum_i g_i, by the network's weights alone:

grad_norm, grad_norm/LAYER   |gbar|, of all weights and of each layer
grad_norm_debiased  sqrt(max(0, |gbar|^2 - tr Cov / T)): E|gbar|^2 = |grad F|^2 + tr Cov / T, so |gbar| alone never
                    falls below the noise of the tasks that were drawn
grad_variance       tr Cov = (1/(T-1)) sum_i |g_i - gbar|^2
grad_snr            (|gbar|^2 - tr Cov / T) / tr Cov: the debiased signal over the noise of one task; its inverse is the
                    simple noise scale (McCandlish et al. 2018, arXiv 1812.06162)
grad_cosine         mean over pairs i < j of cos(g_i, g_j); the cosine of a zero gradient is 0
grad_conflict       share of the pairs with cos(g_i, g_j) < 0 (Yu et al. 2020, arXiv 2001.06782)
update_ratio, update_ratio/LAYER   |theta_{t+1} - theta_t| / |theta_t|, of all weights and of each layer
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.algorithms.objective import NO_REGULARIZATION, Regularization
from metarun.compute.distributed import SINGLE_PROCESS, ProcessGroup
from metarun.compute.linalg import layer_norms, norm, sub
from metarun.diagnostics.adaptation import adaptation_measures
from metarun.diagnostics.penalties import penalty_measures
from metarun.diagnostics.task_sample import TaskSample, mean_gradient, network_weights
from metarun.types import Algorithm, Batch, GradientLearner, Params, Task

Values = dict[str, float]


@dataclass(frozen=True)
class StepMeasures:
    """The measures that need the tasks of the step: all but `update_measures`."""

    algorithm: Algorithm
    tasks: int  # whose inner loop is followed
    chunk: int | None  # of these that vmap handles at once
    regularization: Regularization = NO_REGULARIZATION
    processes: ProcessGroup = SINGLE_PROCESS  # the processes that share them

    def __call__(self, params: Params, grads: Params, tasks: Task) -> Values:
        """Measure theta before the step, the meta-gradients [T, ...] of its tasks, and the tasks."""
        followed = Task(*(Batch(b.x[: self.tasks], b.y[: self.tasks]) for b in tasks))
        sample = TaskSample(followed, self.chunk, self.processes)
        values = gradient_measures(network_weights(grads))
        if isinstance(self.algorithm, GradientLearner):
            values |= adaptation_measures(self.algorithm, params, sample)
        return values | penalty_measures(self.algorithm, self.regularization, params, grads, sample)


def gradient_measures(grads: Params) -> Values:
    """Measure per-task gradients [T, ...]; of a single task only norms."""
    mean = mean_gradient(grads)
    length = float(norm(mean))
    measures = {"grad_norm": length} | {f"grad_norm/{k}": v for k, v in layer_norms(mean).items()}
    tasks = len(next(iter(grads.values())))
    if tasks > 1:
        variance = float(sum(((g - mean[k]).square().sum() for k, g in grads.items()), torch.zeros(()))) / (tasks - 1)
        signal = length**2 - variance / tasks
        measures["grad_norm_debiased"] = max(signal, 0.0) ** 0.5
        measures["grad_variance"] = variance
        measures["grad_snr"] = signal / variance if variance > 0 else float("inf")
        pairs = pairwise_cosines(grads)
        measures["grad_cosine"] = float(pairs.double().mean())
        measures["grad_conflict"] = float((pairs < 0).double().mean())
    return measures


def pairwise_cosines(grads: Params) -> Tensor:
    """cos(g_i, g_j) of the T (T-1) / 2 pairs i < j; 0 where one of them is zero."""
    rows = [g.reshape(len(g), -1) for g in grads.values()]
    lengths_T = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g, dim=1) for g in rows]), dim=0)
    units = [g / lengths_T.clamp_min(torch.finfo(g.dtype).tiny)[:, None] for g in rows]
    cosines_TT = torch.stack([u @ u.T for u in units]).sum(0)
    tasks = len(cosines_TT)
    first, second = torch.triu_indices(tasks, tasks, offset=1)
    return cosines_TT[first, second].clamp(-1, 1)


def update_measures(before: Params, after: Params) -> Values:
    """Measure how far the outer step moved theta."""
    before = network_weights(before)
    change = sub(before, after)
    lengths, changes = layer_norms(before), layer_norms(change)
    layers = {f"update_ratio/{k}": changes[k] / v for k, v in lengths.items() if v > 0}
    return {"update_ratio": float(norm(change) / norm(before)), **layers}
