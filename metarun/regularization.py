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
from typing import Any

import torch
from torch import Tensor

from metarun.linalg import scale
from metarun.types import (
    OWN,
    Adaptation,
    AdaptationPenalty,
    Algorithm,
    Params,
    ProximalPenalty,
    Rates,
    Task,
    TaskPenalty,
)

PLACES = ("inner", "outer", "both")
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
        return f"{OWN}{self.name}."

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

    def trained(self, params: Params) -> list[str]:
        """The names of what the optimizer moves: all but the scheduled weights."""
        scheduled = {f"{t.prefix}weight" for t in self.terms if t.schedule.changes}
        return [name for name in params if name not in scheduled]

    def set_weights(self, params: Params, step: int) -> None:
        """The scheduled weights of this step, in place."""
        for term in self.terms:
            if term.schedule.changes:
                params[f"{term.prefix}weight"].fill_(term.schedule(step))

    def inner(self, at: Adaptation) -> Tensor:
        return sum_of([t.of_adaptation(at) for t in self.inner_terms])

    def whole_inner(self, at: Adaptation) -> Tensor:
        """With the terms that are taken as proximal steps, as an implicit derivative needs it."""
        return sum_of([t.of_adaptation(at) for t in self.terms if t.acts("inner")])

    def shrunk_inner(self, phi: Params) -> set[str]:
        """The tensors that inner proximal steps set zeros in."""
        return {name for t in self.inner_proximal for name in t.penalty.targeted(phi)}

    def outer(self, at: Adaptation) -> Tensor:
        return sum_of([t.of_adaptation(at) for t in self.outer_terms])

    def shared(self, learner: Algorithm, params: Params, tasks: Task) -> Tensor:
        """What is added once to the outer objective of theta; 0 without such a term."""
        return sum_of([t.weight(params) * shared_value(t, learner, params, tasks) for t in self.shared_terms])

    def shrink_inner(self, phi: Params, rates: Rates) -> Params:
        """The proximal steps after one of the inner loop; their weights are constants."""
        for term in self.inner_proximal:
            phi = term.penalty.shrink(phi, thresholds(rates, term.schedule.weight))
        return phi

    def shrink(self, params: Params, rates: Rates, plain: float) -> Params:
        """The proximal steps after one of the optimizer, by each weight's rate or the plain one."""
        for term in self.outer_proximal:
            chosen = rates if term.penalty.metric == "adaptive" else plain
            params = term.penalty.shrink(params, thresholds(chosen, term.weight(params)))
        return params


NO_REGULARIZATION = Regularization()


def shared_value(term: Term, learner: Algorithm, params: Params, tasks: Task) -> Tensor:
    """Omega of theta, or of theta on all tasks together."""
    if isinstance(term.penalty, TaskPenalty):
        return term.penalty.across(learner, params, tasks)
    return term.penalty.of(params)


def thresholds(rates: Rates, weight: Tensor | float) -> Rates:
    """How far a proximal step reaches: weight times rate."""
    return scale(weight, rates) if isinstance(rates, dict) else weight * rates


def sum_of(values: list[Tensor]) -> Tensor:
    return torch.stack(values).sum() if values else torch.zeros(())
