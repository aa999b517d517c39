r"""The value of each penalty at one outer step, and its share of the gradient.

NAME is a term's name, NAME.inner and NAME.outer for a term with where=both.

penalty/NAME         w Omega. Outer: at theta before the step (of the followed tasks' adaptations, their mean; of tasks
                     together, of the followed ones). Inner: at phi_K, mean over the followed tasks. Also for terms that
                     are taken as proximal steps
penalty_share/NAME   outer |g_j| / (|g| + sum_k |g_k|), inner the mean over the followed tasks of the same; the sum is
                     over the terms of that objective, so that its shares and that of the data add up to 1
penalty_weight/NAME  w, where it is scheduled
penalty_factor/NAME  mean of exp(a) over a term's learned logarithms a (a factor, or a standard deviation); NAME.min and
                     NAME.max where there are several

Outer: g_j is what the term adds to the meta-gradient, g the mean meta-gradient without any outer penalty. Of theta and
of tasks together, g_j = w grad Omega(theta). Of a task's Omega(theta, phi_K), it is the difference of the followed
tasks' mean meta-gradients with the term and without, as the algorithm takes them: through the inner loop for MAML, by
the implicit derivative for iMAML, by both partial derivatives for FOMAML and Reptile (so that there a penalty on
phi - theta alone, which both cancel, has the share 0). g is of the step's tasks, or of the followed ones where a term
needs these. Inner: g_j = grad_phi w Omega(phi_K), g = grad L^S(phi_K), of what the inner loop moves; the sum has
|lambda (phi_K - theta)| besides where the learner has a proximal term of its own. This is where the loop ends: a
penalty on phi - theta has a share there, but no gradient at the start, so that it does nothing in a loop of one step.
A term with method=prox counts by the subgradient of its Omega, 0 at 0. All are over the network's weights alone,
before clipping and the optimizer.

sparsity/zeros, sparsity/LAYER  share of exact zeros among the weights that outer terms with a proximal operator
                                penalise, whichever their method, in theta before the step
sparsity_adapted/zeros, sparsity_adapted/LAYER  of inner terms, in phi_K, mean over the followed tasks

Cost: an inner loop of the followed tasks and a few gradients at its end for inner terms; one meta-gradient of the
followed tasks more than there are terms of a task's adaptation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, grad_and_value

from metarun.algorithms.inner_loop import is_adapted, start
from metarun.algorithms.objective import Entry, Regularization, Term
from metarun.algorithms.penalty_protocols import Adaptation, ProximalPenalty
from metarun.compute.linalg import flatten, norm, split_layers, sub, sum_scalars
from metarun.diagnostics.task_sample import TaskSample, adapted_weights, mean_gradient, mean_metrics, network_weights
from metarun.types import Algorithm, GradientLearner, Metrics, Params, ProximalLearner, Task

LOGARITHM = "log_"
"""Name prefix of a penalty's learned logarithms."""

Values = dict[str, float]


class Part(NamedTuple):
    """What a term adds to the outer objective and to its gradient."""

    value: Tensor
    gradient: Params


def penalty_measures(
    learner: Algorithm, regularization: Regularization, params: Params, grads: Params, sample: TaskSample
) -> Values:
    """Measure the penalties, from theta, the tasks' meta-gradients [T, ...] and a few of these tasks."""
    terms = regularization.terms
    measures = {f"penalty_weight/{t.name}": float(t.weight(params)) for t in terms if t.schedule.changes}
    for term in terms:
        learned = [v.flatten() for name, v in term.parameters(params).items() if name.startswith(LOGARITHM)]
        if learned:
            factors, key = torch.cat(learned).double().exp(), f"penalty_factor/{term.name}"
            measures[key] = float(factors.mean())
            if len(factors) > 1:
                measures |= {f"{key}.min": float(factors.min()), f"{key}.max": float(factors.max())}
    measures |= outer_measures(learner, regularization, params, grads, sample)
    zeros = zero_shares("sparsity", params, targets(regularization, "outer", params))
    measures |= mean_metrics(zeros)
    if regularization.select("inner") and isinstance(learner, GradientLearner):
        measures |= inner_measures(learner, regularization, params, sample)
    return measures


def label(term: Term, where: str) -> str:
    """NAME in the names of a term's metrics."""
    return f"{term.name}.{where}" if term.where == "both" else term.name


def outer_measures(
    learner: Algorithm, regularization: Regularization, params: Params, grads: Params, sample: TaskSample
) -> Values:
    """Values and shares of the terms in the outer objective."""
    terms = regularization.select("outer")
    if not terms:
        return {}
    data = mean_gradient(network_weights(grads))
    parts: dict[str, Part] = {}
    if regularization.select(Entry.TASK_LOSS):
        data, parts = adaptation_parts(learner, regularization, params, sample)
    parts |= {t.name: shared_part(t, learner, params, sample.tasks) for t in terms if t.name not in parts}
    values = {f"penalty/{label(t, 'outer')}": float(parts[t.name].value) for t in terms}
    lengths = {t.name: norm(parts[t.name].gradient) for t in terms}
    whole = norm(data) + sum_scalars(lengths.values())
    return values | {f"penalty_share/{label(t, 'outer')}": float(share(lengths[t.name], whole)) for t in terms}


def shared_part(term: Term, learner: Algorithm, params: Params, tasks: Task) -> Part:
    """w Omega and its gradient by theta, of a term on theta or on the tasks together."""

    def weighted(weights: Params) -> Tensor:
        return term.evaluate_shared(learner, params | weights, tasks)

    gradient, value = grad_and_value(weighted)(network_weights(params))
    return Part(value, gradient)


def adaptation_parts(
    learner: Any, regularization: Regularization, params: Params, sample: TaskSample
) -> tuple[Params, dict[str, Part]]:
    """The mean meta-gradient without outer penalties; and what each term on a task's adaptation adds, by its name."""
    inner = tuple(dataclasses.replace(t, where="inner") for t in regularization.select("inner"))

    def meta_gradient(theta: Params, task: Task, outer: tuple[Term, ...] = ()) -> tuple[Params, Metrics]:
        penalised = dataclasses.replace(learner, regularization=Regularization((*inner, *outer)))
        gradient, metrics = penalised.meta_grad(theta, task)
        return network_weights(gradient), metrics

    gradient = mean_gradient(sample.each(meta_gradient, params)[0])
    parts = {}
    for term in regularization.select(Entry.TASK_LOSS):
        outer = (dataclasses.replace(term, where="outer"),)
        gradients, metrics = sample.each(functools.partial(meta_gradient, outer=outer), params)
        parts[term.name] = Part(metrics["penalty"].double().mean(), sub(mean_gradient(gradients), gradient))
    return gradient, parts


def inner_measures(
    learner: GradientLearner, regularization: Regularization, params: Params, sample: TaskSample
) -> Values:
    """Values, shares and zeros at the end of the tasks' inner loops."""
    terms = regularization.select("inner")

    def measure_one(theta: Params, task: Task) -> Metrics:
        phi = adapted_weights(learner, theta, task.support)
        theta = start(learner, theta, task.support)
        at = Adaptation(theta, phi, task.support, None, learner.model, learner.loss, {}, learner.inner_rule.adapted)
        values = {f"penalty/{label(t, 'inner')}": t.evaluate(at) for t in terms}
        zeros = zero_shares("sparsity_adapted", phi, targets(regularization, "inner", phi))
        return values | inner_shares(learner, terms, at) | zeros

    return sample.mean(measure_one, params)


def inner_shares(learner: GradientLearner, terms: list[Term], at: Adaptation) -> Metrics:
    """The terms' shares of the gradient at phi, of one task."""
    adapted = {k: v for k, v in at.phi.items() if is_adapted(k, learner.inner_rule)}

    def length(objective: Callable[[Adaptation], Tensor]) -> Tensor:
        return norm(grad(lambda weights: objective(at._replace(phi=at.phi | weights)))(adapted))

    def support_loss(at: Adaptation) -> Tensor:
        return learner.loss(learner.model.apply(at.phi, at.support.x), at.support.y)

    lengths = {t.name: length(t.evaluate) for t in terms}
    whole = length(support_loss) + sum_scalars(lengths.values())
    if isinstance(learner, ProximalLearner):
        whole = whole + learner.prox * norm(sub(adapted, at.theta))
    return {f"penalty_share/{label(t, 'inner')}": share(lengths[t.name], whole) for t in terms}


def share(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, or 0 if whole is 0."""
    positive = whole > 0
    return torch.where(positive, part / torch.where(positive, whole, 1.0), 0.0)


def targets(regularization: Regularization, where: str, weights: Params) -> list[str]:
    """The names of the tensors that terms with a proximal operator penalise there, whichever method they use."""
    penalties = [t.penalty for t in regularization.select(where)]
    names = {name for p in penalties if isinstance(p, ProximalPenalty) for name in p.target_names(weights)}
    return [name for name in weights if name in names]


def zero_shares(prefix: str, weights: Params, names: list[str]) -> Metrics:
    """Shares of exact zeros: PREFIX/zeros of all these tensors together, and PREFIX/LAYER of each layer."""
    zeros = {name: weights[name] == 0 for name in names}
    layers = {"zeros": zeros} | split_layers(zeros) if names else {}
    return {f"{prefix}/{layer}": flatten(z).to(torch.get_default_dtype()).mean() for layer, z in layers.items()}
