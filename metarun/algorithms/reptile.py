r"""Reptile (Nichol, Achiam, Schulman 2018, arXiv 1803.02999).

    phi = U^k(theta), k steps of an optimizer on mini-batches of one task;   theta <- theta + eps mean_i(phi_i - theta)

The meta-gradient returned here is g = theta - phi, so that an outer SGD with rate eps is that update
(`optim=interpolate`, eps falling linearly to 0). Symbols: k `inner_steps`, eps `optim.lr`.

The inner Adam has beta1 = 0, as published. `moments` says whether its second moments start afresh for each task or
are carried from task to task, at test too, as in the released code. Carried ones are entries of theta which follow
the mean over a step's tasks of what they end with, where the code takes one task after the other.
A penalty Omega(theta, phi) of the outer objective adds both its partial derivatives to g: its weight is in units of
parameter distance squared and not of loss, so that it does not compare with MAML's.

Mini-batch j takes rows j b .. j b + b - 1 of the support set (indices modulo S); episodes are drawn at
random and ordered shot by shot, so that consecutive rows hold every class equally often.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import grad

from metarun.algorithms import inner_loop
from metarun.algorithms.inner_loop import FastWeights, adam, descend_with_state, init_moments, last, named_moments, sgd
from metarun.algorithms.objective import NO_REGULARIZATION, Entry, Regularization
from metarun.compute.linalg import axpy, sub
from metarun.errors import require
from metarun.types import Batch, Kind, Loss, Metrics, Model, Objective, Params, Task, UpdateRule

RULES = {"sgd": sgd, "adam": adam}
MOMENTS = ("fresh", "carried")


@dataclass(frozen=True)
class Reptile:
    """Move the initialisation towards the weights that each task's training ends in."""

    model: Model
    loss: Loss
    inner_optimizer: str
    inner_lr: float
    inner_steps: int
    test_inner_steps: int
    inner_batch: int | None  # rows of a mini-batch; None: the whole support set
    regularization: Regularization = NO_REGULARIZATION
    moments: str = "fresh"  # of the inner Adam
    zero_head: bool = False

    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    head: ClassVar[bool] = True

    def __post_init__(self) -> None:
        inner_loop.check_inner_loop(self.inner_lr, self.inner_steps, self.test_inner_steps)
        choices = "choices: " + ", ".join(RULES)
        require(self.inner_optimizer in RULES, "inner_optimizer", self.inner_optimizer, choices)
        require(self.moments in MOMENTS, "moments", self.moments, "choices: " + ", ".join(MOMENTS))
        kept = self.moments == "fresh" or self.inner_optimizer == "adam"
        require(kept, "moments", self.moments, "needs inner_optimizer=adam: sgd has none")
        batch = self.inner_batch
        require(batch is None or batch >= 1, "inner_batch", batch, "must be at least 1, or null for all rows")

    def init(self, seed: int) -> Params:
        weights = inner_loop.init_weights(self.model, seed, self.zero_head)
        return weights | init_moments(weights) if self.moments == "carried" else weights

    def rescale(self, ratio: float) -> Reptile:
        """The learner whose inner step does to each class what this one's does, for `ratio` times as many classes.

        Each class weighs 1 / N in a mean loss over N classes, so the rate grows with N. The steps of Adam do not depend
        on the scale of a loss.
        """
        return replace(self, inner_lr=self.inner_lr * ratio) if self.inner_optimizer == "sgd" else self

    def adapt(self, params: Params, support: Batch) -> FastWeights:
        return inner_loop.adapt(self, params, support)

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[FastWeights]:
        return inner_loop.adaptations(self, params, support, steps)

    def predict(self, adapted: FastWeights, x: Tensor) -> Tensor:
        return self.model.apply(adapted.params, x, adapted.stats)

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        phi, state = self._inner_loop(params, task.support)
        _, metrics = inner_loop.outer_objective(self, params, phi, task)
        g = sub(params, phi | named_moments(state, phi) if self.moments == "carried" else phi)
        if self.regularization.select(Entry.TASK_LOSS):
            penalty = functools.partial(inner_loop.outer_penalty, self, task=task)
            by_theta, by_phi = grad(penalty, argnums=(0, 1))(params, phi)
            g = axpy(1.0, by_phi, axpy(1.0, by_theta, g))
        return g, metrics | {"distance": inner_loop.distance(phi, params)}

    def _inner_loop(self, params: Params, support: Batch) -> tuple[Params, Any]:
        """phi and the state of the inner optimizer. A method, so that `job=profile` reports its time as a part."""
        objective = self.inner_objective(params, support)
        return last(descend_with_state(objective, params, self.inner_rule, self.inner_steps))

    @property
    def sees_adaptation(self) -> bool:
        return False

    @property
    def inner_rule(self) -> UpdateRule:
        return inner_loop.add_proximal_step(RULES[self.inner_optimizer](self.inner_lr), self.regularization)

    def inner_objective(self, params: Params, support: Batch) -> Objective:
        def objective(phi: Params, step: int) -> Tensor:
            batch, rows, size = support, len(support.x), self.inner_batch
            if size is not None and size < rows:
                index = (step * size + torch.arange(size, device=support.x.device)) % rows  # a traced step is a tensor
                batch = Batch(support.x[index], support.y[index])
            return self.loss(self.model.apply(phi, batch.x), batch.y)

        return inner_loop.add_inner_penalties(self, params, support, objective)
