r"""What each penalty of a run weighs at one outer step, and how much of the gradient it makes up.

NAME is a term's name, NAME.inner and NAME.outer for one that acts in both places (where=both).

penalty/NAME         w Omega. Outer: at theta before the step (of the followed tasks' adaptations, their mean; of tasks
                     together, of the followed ones). Inner: at phi_K, mean over the followed tasks. Also for terms that
                     are taken as proximal steps
penalty_share/NAME   outer |g_j| / (|g| + sum_k |g_k|), inner the mean over the followed tasks of the same; the sum over
                     the terms of that place, so that shares of one place and that of the data add up to 1
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

sparsity/zeros, sparsity/LAYER  share of exact zeros among the weights that outer terms with a proximal operator look
                                at, whichever their method, in theta before the step
sparsity_adapted/zeros, sparsity_adapted/LAYER  of inner terms, in phi_K, mean over the followed tasks

Cost: an inner loop of the followed tasks and a few gradients at its end for inner terms; one meta-gradient of the
followed tasks more than there are terms of a task's adaptation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, grad_and_value

from metarun.algorithms.inner_loop import is_adapted
from metarun.algorithms.objective import Regularization, Term, shared_value
from metarun.algorithms.penalty_protocols import Adaptation, ProximalPenalty
from metarun.compute.distributed import SINGLE_PROCESS, ProcessGroup
from metarun.compute.linalg import norm, sub, sum_scalars
from metarun.compute.task_axis import map_tasks
from metarun.diagnostics.task_sample import adapted_weights, network_weights
from metarun.types import Algorithm, GradientLearner, Metrics, Params, ProximalLearner, Task

LOGARITHM = "log_"
"""How the short names of learned logarithms begin."""

Values = dict[str, float]


class Followed(NamedTuple):
    """A step's tasks whose adaptation is looked at."""

    tasks: Task
    chunk: int | None  # of these that vmap handles at once
    processes: ProcessGroup = SINGLE_PROCESS  # the processes that share them

    def each(self, one: Callable[[Params, Task], tuple[Metrics, Metrics]], params: Params) -> tuple[Metrics, Metrics]:
        with torch.no_grad():
            return map_tasks(one, len(self.tasks.support.x), self.chunk, processes=self.processes)(params, self.tasks)


class Part(NamedTuple):
    """What a term adds to the outer objective and to its gradient."""

    value: Tensor
    gradient: Params


def penalty_measures(
    learner: Algorithm, regularization: Regularization, params: Params, grads: Params, followed: Followed
) -> Values:
    """The measures by name, from theta, the tasks' meta-gradients [T, ...] and a few of these tasks."""
    measures = scheduled_weights(regularization, params) | learned_factors(regularization, params)
    measures |= outer_measures(learner, regularization, params, grads, followed)
    measures |= zeros_measures("sparsity", zeros(params, targets(regularization, "outer", params)))
    if regularization.acts_inside and isinstance(learner, GradientLearner):
        measures |= inner_measures(learner, regularization, params, followed)
    return measures


def label(term: Term, place: str) -> str:
    """What its numbers are called."""
    return f"{term.name}.{place}" if term.where == "both" else term.name


def scheduled_weights(regularization: Regularization, params: Params) -> Values:
    changing = [t for t in regularization.terms if t.schedule.changes]
    return {f"penalty_weight/{t.name}": float(t.weight(params)) for t in changing}


def learned_factors(regularization: Regularization, params: Params) -> Values:
    measures: Values = {}
    for term in regularization.terms:
        learned = [v.flatten() for name, v in term.own(params).items() if name.startswith(LOGARITHM)]
        if learned:
            factors, key = torch.cat(learned).double().exp(), f"penalty_factor/{term.name}"
            measures[key] = float(factors.mean())
            if len(factors) > 1:
                measures |= {f"{key}.min": float(factors.min()), f"{key}.max": float(factors.max())}
    return measures


def outer_measures(
    learner: Algorithm, regularization: Regularization, params: Params, grads: Params, followed: Followed
) -> Values:
    """Values and shares of the terms in the outer objective."""
    terms = [t for t in regularization.terms if t.acts("outer")]
    if not terms:
        return {}
    data: Params = {k: g.mean(0) for k, g in network_weights(grads).items()}
    found: dict[str, Part] = {}
    if regularization.outer_terms:
        data, found = adaptation_parts(learner, regularization, params, followed)
    found |= {t.name: shared_part(t, learner, params, followed.tasks) for t in terms if t.name not in found}
    values = {f"penalty/{label(t, 'outer')}": float(found[t.name].value) for t in terms}
    lengths = {t.name: norm(found[t.name].gradient) for t in terms}
    whole = norm(data) + sum_scalars(lengths.values())
    return values | {f"penalty_share/{label(t, 'outer')}": float(share(lengths[t.name], whole)) for t in terms}


def shared_part(term: Term, learner: Algorithm, params: Params, tasks: Task) -> Part:
    """w Omega and its gradient by theta, of a term on theta or on the tasks together."""

    def weighted(weights: Params) -> Tensor:
        return term.weight(params) * shared_value(term, learner, params | weights, tasks)

    gradient, value = grad_and_value(weighted)(network_weights(params))
    return Part(value, gradient)


def adaptation_parts(
    learner: Any, regularization: Regularization, params: Params, followed: Followed
) -> tuple[Params, dict[str, Part]]:
    """The mean meta-gradient without outer penalties; by the names of the terms on a task's adaptation, their mean
    value and what they add to it."""
    inner = tuple(dataclasses.replace(t, where="inner") for t in regularization.terms if t.acts("inner"))
    terms = [dataclasses.replace(t, where="outer") for t in regularization.outer_terms]
    bare, *with_term = (
        dataclasses.replace(learner, regularization=Regularization((*inner, *added))) for added in [(), *zip(terms)]
    )

    def one(theta: Params, task: Task) -> tuple[Metrics, Metrics]:
        found = [variant.meta_grad(theta, task) for variant in with_term]
        names = [t.name for t in terms]
        values = {n: metrics["penalty"] for n, (_, metrics) in zip(names, found, strict=True)}
        parts = dict(zip(["", *names], [bare.meta_grad(theta, task)[0], *(g for g, _ in found)], strict=True))
        return values, {f"{n}/{k}": v for n, g in parts.items() for k, v in network_weights(g).items()}

    values, gradients = followed.each(one, params)
    mean = {n: {k: gradients[f"{n}/{k}"].mean(0) for k in network_weights(params)} for n in ["", *values]}
    return mean[""], {n: Part(value.double().mean(), sub(mean[n], mean[""])) for n, value in values.items()}


def inner_measures(
    learner: GradientLearner, regularization: Regularization, params: Params, followed: Followed
) -> Values:
    """Values, shares and zeros where the followed tasks' inner loops end."""
    terms = [t for t in regularization.terms if t.acts("inner")]

    def one(theta: Params, task: Task) -> tuple[Metrics, Metrics]:
        phi = adapted_weights(learner, theta, task.support)
        at = Adaptation(theta, phi, task.support, None, learner.model, learner.loss, {})
        weighed = {f"penalty/{label(t, 'inner')}": t.of_adaptation(at) for t in terms}
        found = zeros(phi, targets(regularization, "inner", phi))
        return weighed | inner_shares(learner, terms, at), found

    values, found = followed.each(one, params)
    means = {name: float(v.double().mean()) for name, v in values.items()}
    return means | zeros_measures("sparsity_adapted", found)


def inner_shares(learner: GradientLearner, terms: list[Term], at: Adaptation) -> Metrics:
    """Of one task, at phi."""
    part = {k: v for k, v in at.phi.items() if is_adapted(k, learner.inner_rule)}

    def length(objective: Callable[[Adaptation], Tensor]) -> Tensor:
        return norm(grad(lambda weights: objective(at._replace(phi=at.phi | weights)))(part))

    def support_loss(at: Adaptation) -> Tensor:
        return learner.loss(learner.model.apply(at.phi, at.support.x), at.support.y)

    lengths = {t.name: length(t.of_adaptation) for t in terms}
    whole = length(support_loss) + sum_scalars(lengths.values())
    if isinstance(learner, ProximalLearner):
        whole = whole + learner.prox * norm(sub(part, at.theta))
    return {f"penalty_share/{label(t, 'inner')}": share(lengths[t.name], whole) for t in terms}


def share(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 of nothing."""
    some = whole > 0
    return torch.where(some, part / torch.where(some, whole, 1.0), 0.0)


def targets(regularization: Regularization, place: str, weights: Params) -> list[str]:
    """The tensors that terms with a proximal operator look at in this place, whichever method they use."""
    penalties = [t.penalty for t in regularization.terms if t.acts(place)]
    seen = {name for p in penalties if isinstance(p, ProximalPenalty) for name in p.targeted(weights)}
    return [name for name in weights if name in seen]


def zeros(weights: Params, names: list[str]) -> Metrics:
    """Shares of exact zeros: `zeros` of all these tensors together, and of each layer's by its name."""
    layers: dict[str, list[Tensor]] = {"zeros": []} if names else {}
    for name in names:
        zero = (weights[name] == 0).flatten()
        for key in ("zeros", name.rpartition(".")[0] or name):
            layers.setdefault(key, []).append(zero)
    return {layer: torch.cat(parts).to(torch.get_default_dtype()).mean() for layer, parts in layers.items()}


def zeros_measures(prefix: str, shares: Metrics) -> Values:
    return {f"{prefix}/{layer}": float(v.double().mean()) for layer, v in shares.items()}
