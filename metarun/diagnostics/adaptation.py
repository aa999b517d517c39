r"""Measures of the inner loop phi_0 = theta, phi_1, ... phi_K of a few tasks of one outer step.

support_loss/k, query_loss/k   L^S(phi_k), L^Q(phi_k), mean over the followed tasks
adaptation_gain     L^Q(phi_0) - L^Q(phi_K): 0 with a good score means that features are reused (arXiv 1909.09157)
support_query_gap   L^Q(phi_K) - L^S(phi_K): inner over-fitting
contraction         (|phi_last - phi_(last-1)| / |phi_1 - phi_0|)^(1/(last-1)), the geometric mean of the ratios of
                    successive moves; at most max_j |1 - alpha h_j| on a quadratic with eigenvalues h_j, and towards it
                    as steps go on. Below 1 the inner map contracts, which unrolled and implicit rates need
                    (arXiv 2006.16218). Only of rules whose steps all have the same rates: others take longer steps
                    where the curvature is less
inner_rises         share of inner steps after which L^S was higher than before
distance_body, distance_head, distance_relative   |phi_K - theta| without the head, of the head, and over |theta|
path_ratio          path length sum_k |phi_k - phi_(k-1)| over |phi_K - theta|: 1 for a straight path

K is `inner_steps`; if that is 1, a second step is taken for the contraction alone. Means are over tasks.
"""

from __future__ import annotations

import functools

import torch

from metarun.algorithms.inner_loop import start
from metarun.compute.linalg import norm, sub
from metarun.diagnostics.task_sample import TaskSample, mean_metrics
from metarun.types import HEAD, GradientLearner, Metrics, Params, Task


def adaptation_measures(learner: GradientLearner, params: Params, sample: TaskSample) -> dict[str, float]:
    """Measure the inner loops of a few tasks; no gradient flows."""
    losses, moves = sample.each(functools.partial(follow, learner), params)
    steps = learner.inner_steps
    support, query = (losses[part].double().mean(0).tolist() for part in ("support", "query"))
    measures = {f"support_loss/{k}": v for k, v in enumerate(support)}
    measures |= {f"query_loss/{k}": v for k, v in enumerate(query)}
    measures["adaptation_gain"] = query[0] - query[steps]
    measures["support_query_gap"] = query[steps] - support[steps]
    measures["inner_rises"] = float((losses["support"].diff(dim=1) > 0).double().mean())
    return measures | mean_metrics(moves)


def follow(learner: GradientLearner, theta: Params, task: Task) -> tuple[Metrics, Metrics]:
    """Of one task: the losses [K+1] along the inner loop, and the measures of how the weights move."""
    last = max(learner.inner_steps, 2)
    support, query, moves = [], [], []
    theta = before = adapted = start(learner, theta, task.support)
    for k, state in enumerate(learner.adaptations(theta, task.support, last)):
        phi = state.params
        if k:
            moves.append(norm(sub(phi, before)))
        if k <= learner.inner_steps:
            support.append(learner.loss(learner.model.apply(phi, task.support.x), task.support.y))
            query.append(learner.loss(learner.predict(state, task.query.x), task.query.y))
            adapted = phi
        before = phi
    losses = {"support": torch.stack(support), "query": torch.stack(query)}
    moves_K, away = torch.stack(moves), sub(adapted, theta)
    head = {k: v for k, v in away.items() if k.startswith(HEAD)}
    body = {k: v for k, v in away.items() if k not in head}
    tiny = torch.finfo(moves_K.dtype).tiny
    total = norm(away)
    measures = {f"distance_{name}": norm(part) for name, part in (("body", body), ("head", head)) if part}
    if learner.inner_rule.fixed:
        measures["contraction"] = (moves_K[-1] / moves_K[0].clamp_min(tiny)) ** (1 / (len(moves) - 1))
    return losses, measures | {
        "distance_relative": total / norm(theta).clamp_min(tiny),
        "path_ratio": moves_K[: learner.inner_steps].sum() / total.clamp_min(tiny),
    }
