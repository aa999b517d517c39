"""What a training record says beyond the tasks' own metrics: of gradients, inner loops and the outer update."""

from __future__ import annotations

from dataclasses import dataclass

from metarun.diagnostics.adaptation import adaptation_measures
from metarun.diagnostics.gradients import gradient_measures
from metarun.linalg import layer_norms, norm, sub
from metarun.types import Algorithm, Batch, GradientLearner, Params, Task

Values = dict[str, float]


@dataclass(frozen=True)
class StepMeasures:
    """Measures of one outer step, from what the step has computed and a few tasks' inner loops."""

    algorithm: Algorithm
    tasks: int  # whose inner loop is followed
    chunk: int | None  # of these that vmap handles at once

    def __call__(self, params: Params, grads: Params, tasks: Task) -> Values:
        """theta before the step, the meta-gradients [T, ...] of its tasks, the tasks."""
        values = gradient_measures(grads)
        if isinstance(self.algorithm, GradientLearner):
            few = Task(*(Batch(b.x[: self.tasks], b.y[: self.tasks]) for b in tasks))
            values |= adaptation_measures(self.algorithm, params, few, self.chunk)
        return values


def update_measures(before: Params, after: Params) -> Values:
    """|theta_{t+1} - theta_t| / |theta_t|, of all weights and of each layer."""
    change = sub(after, before)
    lengths, changes = layer_norms(before), layer_norms(change)
    layers = {f"update_ratio/{k}": changes[k] / v for k, v in lengths.items() if v > 0}
    return {"update_ratio": float(norm(change) / norm(before)), **layers}
