r"""The penalties of a run together: what each weighs at a step, and where it enters.

    inner objective   L^S(phi) + sum_j w_j Omega_j           over the terms with where=inner or both
    outer objective   mean_i [ L^Q_i(phi_i) + sum_j w_j Omega_j(theta, phi_i) ] + sum_j w_j Omega_j(theta)

A penalty itself (`regularizers/`) is an unweighted Omega; this file weighs it. What it looks at decides how it enters:
weights alone (`of`), one task's adaptation (`between`) or the tasks of a step together (`across`). A term with
method=prox adds nothing to an objective: its proximal operator follows each step of the inner loop or of the optimizer.

A weight that is scheduled is an entry `reg.NAME.weight` of the meta-parameters, set before each step and never trained,
so that adaptation at test and a resumed run meet the same number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from metarun.algorithms.penalty_protocols import Adaptation, AdaptationPenalty, ProximalPenalty, TaskPenalty
from metarun.compute.linalg import scale, sum_scalars
from metarun.errors import SettingError
from metarun.types import CARRIED, REG, Algorithm, Model, Params, Rates, Task

PLACES = ("inner", "outer", "both")
FURTHEST = 10
"""Of the learning rate, how far a proximal step may reach where Adam's rates say more. Adam's own steps are about 1."""

SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """The weight at outer step t of `steps`: from `weight` to `final`, after rising from 0 over `warmup` steps."""

    weight: float
    shape: str = "constant"
    final: float = 0.0
    warmup: int = 0
    steps: int = 1

    def __call__(self, step: int) -> float:
        """constant: w; linear: w + (final - w) t/steps; cosine: final + (w - final)(1 + cos(pi t/steps))/2; all of
        them times min(1, t/warmup)."""
        progress = min(step / self.steps, 1.0)
        left = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[self.shape]
        risen = min(step / self.warmup, 1.0) if self.warmup else 1.0
        return risen * (self.final + (self.weight - self.final) * left)

    @property
    def changes(self) -> bool:
        return self.shape != "constant" or self.warmup > 0


@dataclass(frozen=True)
class Term:
    """One penalty, its weight and its place."""

    name: str
    penalty: Any
    schedule: Schedule
    where: str = "outer"

    def acts(self, place: str) -> bool:
        return self.where in (place, "both")

    @property
    def proximal(self) -> bool:
        return isinstance(self.penalty, ProximalPenalty) and self.penalty.method == "prox"

    @property
    def prefix(self) -> str:
        """Of the names of its entries among the meta-parameters."""
        return f"{REG}{self.name}."

    def weight(self, theta: Params) -> Tensor | float:
        return theta[f"{self.prefix}weight"] if self.schedule.changes else self.schedule.weight

    def own(self, theta: Params) -> Params:
        return {k.removeprefix(self.prefix): v for k, v in theta.items() if k.startswith(self.prefix)}

    def of_adaptation(self, at: Adaptation) -> Tensor:
        """w Omega of one task; weights alone are those of phi."""
        omega = self.unweighted(at)
        return self.weight(at.theta) * omega

    def unweighted(self, at: Adaptation) -> Tensor:
        if isinstance(self.penalty, AdaptationPenalty):
            return self.penalty.between(at._replace(own=self.own(at.theta)))
        return self.penalty.of(at.phi)


@runtime_checkable
class NoisyModel(Protocol):
    """A network that a penalty has given noise, or a learner with noise of its own; what it returns here goes to the
    meta-gradient and nowhere else."""

    def noisy(self, params: Params, tasks: Task, seed: int, step: int, first: int = 0) -> tuple[Params, Task]:
        """Meta-parameters and tasks [T, ...] with the noise of this outer step, a function of (seed, step) and, by
        task, of its number among those of the step: `first` and the following ones."""


@dataclass(frozen=True)
class Regularization:
    """All terms of a run; without any, nothing is added anywhere."""

    terms: tuple[Term, ...] = ()

    @property
    def inner_terms(self) -> list[Term]:
        """Added to the inner objective."""
        return [t for t in self.terms if t.acts("inner") and not t.proximal]

    @property
    def inner_proximal(self) -> list[Term]:
        """Taken as proximal steps of the inner loop."""
        return [t for t in self.terms if t.acts("inner") and t.proximal]

    @property
    def acts_inside(self) -> bool:
        return any(t.acts("inner") for t in self.terms)

    @property
    def outer_terms(self) -> list[Term]:
        """Added to each task's outer objective."""
        return [t for t in self.terms if t.acts("outer") and isinstance(t.penalty, AdaptationPenalty)]

    @property
    def shared_terms(self) -> list[Term]:
        """Added to the outer objective once: on theta, or on all tasks together."""
        return [t for t in self.terms if t.acts("outer") and not t.proximal and t not in self.outer_terms]

    @property
    def joins_tasks(self) -> bool:
        """Whether a term needs all tasks of a step at once."""
        return any(isinstance(t.penalty, TaskPenalty) for t in self.shared_terms)

    @property
    def outer_proximal(self) -> list[Term]:
        """Taken as proximal steps after those of the optimizer."""
        return [t for t in self.terms if t.acts("outer") and t.proximal]

    def init(self, weights: Params) -> Params:
        """The network's weights and, beside them, the penalties' own meta-parameters and scheduled weights."""
        own: Params = {}
        for term in self.terms:
            parameters = term.penalty.init(weights) if hasattr(term.penalty, "init") else {}
            own |= {term.prefix + k: v for k, v in parameters.items()}
            if term.schedule.changes:
                own[f"{term.prefix}weight"] = torch.tensor(term.schedule(0))
        return weights | own

    def wrap(self, model: Model, input_shape: tuple[int, ...]) -> Model:
        """The network, with what the penalties make of it: noise."""
        for term in self.terms:
            if hasattr(term.penalty, "wrap"):
                try:
                    model = term.penalty.wrap(model, term.prefix, input_shape)
                except SettingError as error:
                    raise error.under(f"reg.{term.name}") from error
        return model

    def trained(self, params: Params) -> list[str]:
        """The names of what the optimizer moves: all but scheduled weights, a network's noise and what is carried."""
        scheduled = {f"{t.prefix}weight" for t in self.terms if t.schedule.changes}
        fixed = (CARRIED, *(f"{t.prefix}noise." for t in self.terms))
        return [name for name in params if name not in scheduled and not name.startswith(fixed)]

    def set_weights(self, params: Params, step: int) -> None:
        """The scheduled weights of this step, in place."""
        for term in self.terms:
            if term.schedule.changes:
                params[f"{term.prefix}weight"].fill_(term.schedule(step))

    def inner(self, at: Adaptation) -> Tensor:
        return sum_scalars([t.of_adaptation(at) for t in self.inner_terms])

    def whole_inner(self, at: Adaptation) -> Tensor:
        """With the terms that are taken as proximal steps, as an implicit derivative needs it."""
        return sum_scalars([t.of_adaptation(at) for t in self.terms if t.acts("inner")])

    def held_inner(self, phi: Params) -> Params:
        """True where inner proximal steps hold a weight at zero."""
        held: Params = {}
        for term in self.inner_proximal:
            held |= {k: v | held[k] if k in held else v for k, v in term.penalty.held(phi).items()}
        return held

    def outer(self, at: Adaptation) -> Tensor:
        return sum_scalars([t.of_adaptation(at) for t in self.outer_terms])

    def shared(self, learner: Algorithm, params: Params, tasks: Task) -> Tensor:
        """What is added once to the outer objective of theta; 0 without such a term."""
        return sum_scalars([t.weight(params) * shared_value(t, learner, params, tasks) for t in self.shared_terms])

    def shrink_inner(self, phi: Params, rates: Rates, lr: float) -> Params:
        """The proximal steps after one of the inner loop; their weights are constants."""
        for term in self.inner_proximal:
            phi = shrunk(term, phi, rates, lr, term.schedule.weight)
        return phi

    def shrink(self, params: Params, rates: Rates, lr: float) -> Params:
        """The proximal steps after one of the optimizer."""
        for term in self.outer_proximal:
            params = shrunk(term, params, rates, lr, term.weight(params))
        return params


NO_REGULARIZATION = Regularization()


def add_model_noise(
    model: Model, params: Params, tasks: Task, seed: int, step: int, first: int = 0
) -> tuple[Params, Task]:
    """What the meta-gradient of an outer step is taken at: with noise, if the network has any."""
    return model.noisy(params, tasks, seed, step, first) if isinstance(model, NoisyModel) else (params, tasks)


def add_noise(
    learner: Algorithm, params: Params, tasks: Task, seed: int, step: int, first: int = 0
) -> tuple[Params, Task]:
    """The network's, and what the learner itself draws for a step."""
    params, tasks = add_model_noise(learner.model, params, tasks, seed, step, first)
    return learner.noisy(params, tasks, seed, step, first) if isinstance(learner, NoisyModel) else (params, tasks)


def shared_value(term: Term, learner: Algorithm, params: Params, tasks: Task) -> Tensor:
    """Omega of theta, or of theta on all tasks together."""
    if isinstance(term.penalty, TaskPenalty):
        return term.penalty.across(learner, params, tasks)
    return term.penalty.of(params)


def shrunk(term: Term, weights: Params, rates: Rates, lr: float, weight: Tensor | float) -> Params:
    """The term's proximal operator, by each weight's own rate or by lr.

    Where rates differ from weight to weight, as Adam's lr / (sqrt(v) + eps) do, a threshold ends at FURTHEST * lr: a
    unit without gradients yet, whose rate has no bound, would be gone after a step. At a minimum the limit is not met,
    since there |gradient| = weight <= sqrt(v) wherever w is not 0. Learned rates have none, in either metric: lr = inf.
    """
    if term.penalty.metric == "plain" and lr < math.inf:
        rates = lr
    limit = FURTHEST * lr if isinstance(rates, dict) else math.inf
    return term.penalty.shrink(weights, thresholds(rates, weight), limit)


def thresholds(rates: Rates, weight: Tensor | float) -> Rates:
    """How far a proximal step reaches: weight times rate."""
    return scale(weight, rates) if isinstance(rates, dict) else weight * rates
