r"""The penalties of a run together: the weight of each at a step, and how it enters training.

    inner objective   L^S(phi) + sum_j w_j Omega_j           over the terms with where=inner or both
    outer objective   mean_i [ L^Q_i(phi_i) + sum_j w_j Omega_j(theta, phi_i) ] + sum_j w_j Omega_j(theta)

A penalty itself (`regularizers/`) is an unweighted Omega; this file weighs it. What it looks at decides how it enters
(`Entry`): weights alone (`of`), one task's adaptation (`between`) or the tasks of a step together (`across`). A term
with method=prox adds nothing to an objective: its proximal operator follows each step of the inner loop or of the
optimizer.

A weight that is scheduled is an entry `reg.NAME.weight` of the meta-parameters, set before each step and never trained,
so that adaptation at test and a resumed run meet the same number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from metarun.algorithms.penalty_protocols import Adaptation, AdaptationPenalty, ProximalPenalty, TaskPenalty
from metarun.compute.linalg import scale, sum_scalars
from metarun.errors import SettingError
from metarun.types import CARRIED, REG, Algorithm, Model, Params, PenaltyOptions, Rates, Task, optional

WHERE = ("inner", "outer", "both")
LONGEST_STEP = 10
"""In learning rates, the limit of a proximal step where Adam's rates are longer. Adam's own steps are about 1."""

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


class Entry(Enum):
    """How a term enters training."""

    INNER_LOSS = "added to the inner objective"
    INNER_STEP = "a proximal step after each step of the inner loop"
    TASK_LOSS = "added to the outer objective of each task"
    SHARED_LOSS = "added to the outer objective once: on theta, or on all tasks together"
    OUTER_STEP = "a proximal step after each step of the optimizer"

    @property
    def where(self) -> str:
        """inner or outer."""
        return "inner" if self in (Entry.INNER_LOSS, Entry.INNER_STEP) else "outer"


@dataclass(frozen=True)
class Term:
    """One penalty, its weight, and the loops that it is in."""

    name: str
    penalty: Any
    schedule: Schedule
    where: str = "outer"

    def enters(self, where: str | Entry) -> bool:
        """Whether the term is in a loop (inner or outer), or enters it in this way."""
        if isinstance(where, Entry):
            return self.enters(where.where) and self._entry(where.where) is where
        return self.where in (where, "both")

    def _entry(self, where: str) -> Entry:
        if self.proximal:
            return Entry.INNER_STEP if where == "inner" else Entry.OUTER_STEP
        if where == "inner":
            return Entry.INNER_LOSS
        return Entry.TASK_LOSS if isinstance(self.penalty, AdaptationPenalty) else Entry.SHARED_LOSS

    @property
    def proximal(self) -> bool:
        return isinstance(self.penalty, ProximalPenalty) and self.penalty.method == "prox"

    @property
    def prefix(self) -> str:
        """The prefix of the names of its meta-parameters."""
        return f"{REG}{self.name}."

    def weight(self, theta: Params) -> Tensor | float:
        return theta[f"{self.prefix}weight"] if self.schedule.changes else self.schedule.weight

    def parameters(self, theta: Params) -> Params:
        """The penalty's own meta-parameters, by their short names."""
        return {k.removeprefix(self.prefix): v for k, v in theta.items() if k.startswith(self.prefix)}

    def evaluate(self, at: Adaptation) -> Tensor:
        """w Omega of one task's adaptation; a penalty on weights alone is that of phi."""
        if isinstance(self.penalty, AdaptationPenalty):
            omega = self.penalty.between(at._replace(own=self.parameters(at.theta)))
        else:
            omega = self.penalty.of(at.phi)
        return self.weight(at.theta) * omega

    def evaluate_shared(self, learner: Algorithm, params: Params, tasks: Task) -> Tensor:
        """w Omega of theta, or of theta on all tasks together."""
        together = isinstance(self.penalty, TaskPenalty)
        omega = self.penalty.across(learner, params, tasks) if together else self.penalty.of(params)
        return self.weight(params) * omega

    def shrink(self, weights: Params, rates: Rates, lr: float, weight: Tensor | float) -> Params:
        """The proximal operator, by each weight's own rate or by lr.

        Where rates differ from weight to weight, as Adam's lr / (sqrt(v) + eps) do, a threshold ends at
        LONGEST_STEP * lr: a unit without gradients yet, whose rate has no bound, would be gone after a step. At a
        minimum the limit is not met, since there |gradient| = weight <= sqrt(v) wherever w is not 0. Learned rates have
        none, in either metric: lr = inf.
        """
        if self.penalty.metric == "plain" and lr < math.inf:
            rates = lr
        if not isinstance(rates, dict):
            return self.penalty.shrink(weights, weight * rates, math.inf)
        moved = {name: weights[name] for name in rates}  # a head of 0 has no rate: the optimizer leaves it alone
        return weights | self.penalty.shrink(moved, scale(weight, rates), LONGEST_STEP * lr)


@runtime_checkable
class NoisyModel(Protocol):
    """A network with the noise of a penalty, or a learner with noise of its own. Noise enters meta-gradients alone."""

    def add_noise(self, params: Params, tasks: Task, seed: int, step: int, first: int = 0) -> tuple[Params, Task]:
        """Meta-parameters and tasks [T, ...] with the noise of this outer step, a function of (seed, step) and, by
        task, of its number among those of the step: `first` and the following ones."""


@dataclass(frozen=True)
class Regularization:
    """All terms of a run; without any, nothing is added anywhere."""

    terms: tuple[Term, ...] = ()

    def select(self, where: str | Entry) -> list[Term]:
        """The terms in a loop (inner or outer), or those that enter it in this way."""
        return [t for t in self.terms if t.enters(where)]

    @property
    def needs_all_tasks(self) -> bool:
        """Whether a term needs all tasks of a step at once."""
        return any(isinstance(t.penalty, TaskPenalty) for t in self.select(Entry.SHARED_LOSS))

    def init(self, weights: Params) -> Params:
        """The network's weights and, beside them, the penalties' own meta-parameters and scheduled weights."""
        own: Params = {}
        for term in self.terms:
            init = optional(term.penalty, PenaltyOptions, "init")
            own |= {term.prefix + k: v for k, v in init(weights).items()} if init else {}
            if term.schedule.changes:
                own[f"{term.prefix}weight"] = torch.tensor(term.schedule(0))
        return weights | own

    def wrap(self, model: Model, input_shape: tuple[int, ...]) -> Model:
        """The network, with the noise that penalties add to it."""
        for term in self.terms:
            wrap = optional(term.penalty, PenaltyOptions, "wrap")
            try:
                model = wrap(model, term.prefix, input_shape) if wrap else model
            except SettingError as error:
                raise error.under(f"reg.{term.name}") from error
        return model

    def trained_names(self, params: Params) -> list[str]:
        """The names of what the optimizer moves: all but scheduled weights, a network's noise and what is carried."""
        scheduled = {f"{t.prefix}weight" for t in self.terms if t.schedule.changes}
        fixed = (CARRIED, *(f"{t.prefix}noise." for t in self.terms))
        return [name for name in params if name not in scheduled and not name.startswith(fixed)]

    def set_weights(self, params: Params, step: int) -> None:
        """The scheduled weights of this step, in place."""
        for term in self.terms:
            if term.schedule.changes:
                params[f"{term.prefix}weight"].fill_(term.schedule(step))

    def inner_penalty(self, at: Adaptation, proximal: bool = False) -> Tensor:
        """sum_j w_j Omega_j of the inner objective; with `proximal` also of the terms that are proximal steps, as an
        implicit derivative needs it."""
        return sum_scalars([t.evaluate(at) for t in self.select("inner" if proximal else Entry.INNER_LOSS)])

    def shared_penalty(self, learner: Algorithm, params: Params, tasks: Task) -> Tensor:
        """sum_j w_j Omega_j that is added once to the outer objective of theta; 0 without such a term."""
        return sum_scalars([t.evaluate_shared(learner, params, tasks) for t in self.select(Entry.SHARED_LOSS)])

    def mask_zeros(self, phi: Params) -> Params:
        """True where inner proximal steps hold a weight at zero, for the tensors that have such steps."""
        mask: Params = {}
        for term in self.select(Entry.INNER_STEP):
            mask |= {k: v | mask[k] if k in mask else v for k, v in term.penalty.mask_zeros(phi).items()}
        return mask

    def shrink_inner(self, phi: Params, rates: Rates, lr: float) -> Params:
        """The proximal steps after one of the inner loop; their weights are constants."""
        for term in self.select(Entry.INNER_STEP):
            phi = term.shrink(phi, rates, lr, term.schedule.weight)
        return phi

    def shrink_outer(self, params: Params, rates: Rates, lr: float) -> Params:
        """The proximal steps after one of the optimizer."""
        for term in self.select(Entry.OUTER_STEP):
            params = term.shrink(params, rates, lr, term.weight(params))
        return params


NO_REGULARIZATION = Regularization()


def add_noise(
    learner: Algorithm, params: Params, tasks: Task, seed: int, step: int, first: int = 0
) -> tuple[Params, Task]:
    """Meta-parameters and tasks with the noise of an outer step: the network's, and the learner's own."""
    for part in (learner.model, learner):
        if isinstance(part, NoisyModel):
            params, tasks = part.add_noise(params, tasks, seed, step, first)
    return params, tasks
