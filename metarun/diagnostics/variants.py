r"""Probe tasks adapted in full and by the head alone: what adapting the body adds (ANIL, arXiv 1909.09157).

full_METRIC       the reported figure on the queries after `inner_steps`, mean over tasks
head_only_METRIC  the same where the inner loop, its rule and objective unchanged, moves only the tensors `head.*`
gain_from_body    by how much the full one is better: full - head-only of an accuracy, head-only - full of an error
"""

from __future__ import annotations

from torch import Tensor

from metarun.algorithms.inner_loop import descend, is_adapted, last
from metarun.diagnostics.adaptation import HEAD
from metarun.diagnostics.task_sample import ProbeTasks, adapted_weights, network_weights
from metarun.types import Batch, GradientLearner, Metrics, Params, Task


def head_only_measures(learner: GradientLearner, params: Params, tasks: ProbeTasks) -> dict[str, float]:
    """The measures by name; none for a network that has no head, or nothing else."""
    heads = [name.startswith(HEAD) for name in network_weights(params)]
    if all(heads) or not any(heads):
        return {}
    metric, sign = learner.loss.metric, 1 if learner.loss.higher_is_better else -1

    def one(theta: Params, task: Task) -> tuple[Metrics, Metrics]:
        full = score(learner, adapted_weights(learner, theta, task.support), task)
        head_only = score(learner, head_adapted(learner, theta, task.support), task)
        gain = sign * (full - head_only)
        return {f"full_{metric}": full, f"head_only_{metric}": head_only, "gain_from_body": gain}, {}

    return tasks.mean(one, params)


def head_adapted(learner: GradientLearner, theta: Params, support: Batch) -> Params:
    """theta, its head after `inner_steps` of the learner's rule on the learner's objective."""
    rule = learner.inner_rule
    head = tuple(name for name in theta if name.startswith(HEAD) and is_adapted(name, rule))
    if not head:
        return theta
    return last(
        descend(learner.inner_objective(theta, support), theta, rule._replace(adapted=head), learner.inner_steps)
    )


def score(learner: GradientLearner, phi: Params, task: Task) -> Tensor:
    """The reported figure of the queries, normalised as in prediction."""
    stats = learner.model.query_stats(phi, task.support.x)
    return learner.loss.score(learner.model.apply(phi, task.query.x, stats), task.query.y)
