"""What a training record says beyond the tasks' own metrics: of gradients, inner loops and the outer update."""

from __future__ import annotations

from dataclasses import dataclass

from metarun.algorithms.objective import NO_REGULARIZATION, Regularization
from metarun.compute.distributed import SINGLE_PROCESS, ProcessGroup
from metarun.compute.linalg import layer_norms, norm, sub
from metarun.diagnostics.adaptation import adaptation_measures
from metarun.diagnostics.gradients import gradient_measures
from metarun.diagnostics.penalties import Followed, penalty_measures
from metarun.diagnostics.task_sample import network_weights
from metarun.types import Algorithm, Batch, GradientLearner, Params, Task

Values = dict[str, float]


@dataclass(frozen=True)
class StepMeasures:
    """Measures of one outer step, from what the step has computed and a few tasks' inner loops."""

    algorithm: Algorithm
    tasks: int  # whose inner loop is followed
    chunk: int | None  # of these that vmap handles at once
    regularization: Regularization = NO_REGULARIZATION
    processes: ProcessGroup = SINGLE_PROCESS  # the processes that share them

    def __call__(self, params: Params, grads: Params, tasks: Task) -> Values:
        """theta before the step, the meta-gradients [T, ...] of its tasks, the tasks."""
        values = gradient_measures(network_weights(grads))
        few = Task(*(Batch(b.x[: self.tasks], b.y[: self.tasks]) for b in tasks))
        if isinstance(self.algorithm, GradientLearner):
            values |= adaptation_measures(self.algorithm, params, few, self.chunk, self.processes)
        followed = Followed(few, self.chunk, self.processes)
        return values | penalty_measures(self.algorithm, self.regularization, params, grads, followed)


def update_measures(before: Params, after: Params) -> Values:
    """|theta_{t+1} - theta_t| / |theta_t|, of all the network's weights and of each layer."""
    before = network_weights(before)
    change = sub(before, after)
    lengths, changes = layer_norms(before), layer_norms(change)
    layers = {f"update_ratio/{k}": changes[k] / v for k, v in lengths.items() if v > 0}
    return {"update_ratio": float(norm(change) / norm(before)), **layers}
