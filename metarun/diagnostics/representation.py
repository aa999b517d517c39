r"""What adaptation does to the features, and how well these separate classes, on probe tasks.

cka/LAYER         linear CKA (Kornblith et al. 2019, arXiv 1905.00414) between the activations X, Y [M, p] of the query
                  inputs with theta and with phi, mean over tasks: |Y'X|^2 / (|X'X| |Y'Y|) in Frobenius norms, X and Y
                  less the mean of their rows. 1: the layer is reused up to a rotation and a scale (arXiv 1909.09157).
                  With fewer rows than columns it is biased towards 1: compare only layers and runs of the same M
nil_accuracy      at theta, share of queries whose features have the largest cosine with the mean support features of
                  their own class: no inner loop, no head (after NIL of arXiv 1909.09157); for learners with a loop
class_separation  s_within / s_between of the features of all R images of a task at theta, low where classes are tight
                  and far apart (Goldblum et al. 2020, arXiv 2002.06753, up to a factor):
                  s_within = (1/(R-N)) sum_r |z_r - mu_(y_r)|^2,  s_between = (1/(N-1)) sum_n |mu_n - mean of the mu|^2

full_METRIC       the reported metric of the queries after `inner_steps`, mean over tasks
head_only_METRIC  the same where the inner loop, its rule and objective unchanged, moves only the tensors `head.*`
                  (ANIL, arXiv 1909.09157)
gain_from_body    by how much full adaptation is better: full - head-only of an accuracy, head-only - full of an error

`nil_accuracy` and `class_separation` are for classification. Queries are normalised as in prediction, the images of
`class_separation` in one batch. The network is the one that is trained: with `norm=population` its statistics are those
of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from metarun.algorithms.embeddings import one_hot
from metarun.algorithms.inner_loop import descend, is_adapted, last, start
from metarun.diagnostics.task_sample import TaskSample, adapted_weights, network_weights
from metarun.types import HEAD, Algorithm, Batch, GradientLearner, Metrics, Model, Params, Task


def similarity_measures(learner: GradientLearner, params: Params, sample: TaskSample) -> dict[str, float]:
    """Measure the CKA of each layer before and after adaptation."""

    def measure_one(theta: Params, task: Task) -> Metrics:
        phi = adapted_weights(learner, theta, task.support)
        before, after = (query_activations(learner.model, weights, task) for weights in (theta, phi))
        return {f"cka/{layer}": linear_cka(before[layer], after[layer]) for layer in before}

    return sample.mean(measure_one, params)


def class_measures(algorithm: Algorithm, params: Params, sample: TaskSample, ways: int) -> dict[str, float]:
    """Measure class separation, and for learners with an inner loop the accuracy without it."""

    def measure_one(theta: Params, task: Task) -> Metrics:
        x = torch.cat([task.support.x, task.query.x])  # in one batch
        z_RD = algorithm.model.activations(theta, x)["features"]
        metrics = {"class_separation": separation(z_RD, torch.cat([task.support.y, task.query.y]), ways)}
        if isinstance(algorithm, GradientLearner):
            metrics["nil_accuracy"] = nil_accuracy(algorithm.model, theta, task, ways)
        return metrics

    return sample.mean(measure_one, params)


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """[M, p], [M, q] -> a scalar in [0, 1]; NaN where all rows of one are the same."""
    # |Y'X|^2 = <XX', YY'>: Gram matrices of the M rows are small however wide a layer is.
    gram_x, gram_y = (centred @ centred.T for centred in (x - x.mean(0), y - y.mean(0)))
    return (gram_x * gram_y).sum() / (gram_x.norm() * gram_y.norm())


def nil_accuracy(model: Model, theta: Params, task: Task, ways: int) -> Tensor:
    """The share of one task's queries that are nearest in angle to their own class mean."""
    z_SD = model.activations(theta, task.support.x)["features"]
    z_MD = query_activations(model, theta, task)["features"]
    mu_ND = class_means(z_SD, task.support.y, ways)
    cosine_MN = normalize(z_MD, dim=1) @ normalize(mu_ND, dim=1).T
    return (cosine_MN.argmax(1) == task.query.y).to(z_MD.dtype).mean()


def separation(z_RD: Tensor, y_R: Tensor, ways: int) -> Tensor:
    """s_within / s_between."""
    mu_ND = class_means(z_RD, y_R, ways)
    within = (z_RD - one_hot(y_R, ways, z_RD) @ mu_ND).square().sum() / (len(z_RD) - ways)
    return within / ((mu_ND - mu_ND.mean(0)).square().sum() / (ways - 1))


def query_activations(model: Model, weights: Params, task: Task) -> dict[str, Tensor]:
    """The activations of the query inputs, normalised as in prediction."""
    return model.activations(weights, task.query.x, model.query_stats(weights, task.support.x))


def class_means(z_RD: Tensor, y_R: Tensor, ways: int) -> Tensor:
    """The mean of each class: [R, D] -> [N, D]."""
    members_RN = one_hot(y_R, ways, z_RD)
    return members_RN.T @ z_RD / members_RN.sum(0)[:, None]


def head_only_measures(learner: GradientLearner, params: Params, sample: TaskSample) -> dict[str, float]:
    """Measure adaptation of the head alone; empty for a network that has no head, or nothing else."""
    heads = [name.startswith(HEAD) for name in network_weights(params)]
    if all(heads) or not any(heads):
        return {}
    metric, sign = learner.loss.metric, 1 if learner.loss.higher_is_better else -1

    def measure_one(theta: Params, task: Task) -> Metrics:
        full = score(learner, adapted_weights(learner, theta, task.support), task)
        head_only = score(learner, adapt_head(learner, theta, task.support), task)
        gain = sign * (full - head_only)
        return {f"full_{metric}": full, f"head_only_{metric}": head_only, "gain_from_body": gain}

    return sample.mean(measure_one, params)


def adapt_head(learner: GradientLearner, theta: Params, support: Batch) -> Params:
    """Return phi_0 with its head after `inner_steps` of the learner's rule on the learner's objective."""
    rule = learner.inner_rule
    head = tuple(name for name in theta if name.startswith(HEAD) and is_adapted(name, rule))
    first = start(learner, theta, support)
    if not head:
        return first
    objective = learner.inner_objective(theta, support)
    return last(descend(objective, first, rule._replace(adapted=head), learner.inner_steps))


def score(learner: GradientLearner, phi: Params, task: Task) -> Tensor:
    """The reported metric of the queries, normalised as in prediction."""
    stats = learner.model.query_stats(phi, task.support.x)
    return learner.loss.score(learner.model.apply(phi, task.query.x, stats), task.query.y)
