r"""iMAML (Rajeswaran, Finn, Kakade, Levine 2019, arXiv 1909.04630).

    phi* = argmin_phi  L^S(phi) + (lambda/2) |phi - theta|^2          (here: `inner_steps` gradient steps)
    meta-gradient  g = (I + H/lambda)^{-1} grad L^Q(phi*),   H the Hessian of L^S at phi*

Symbols: lambda `prox`, inner rate `inner_lr` on the *mean* loss, `cg_steps` conjugate-gradient steps for the linear
system, `cg_damping` d added to it: A = (1 + d) I + H/lambda (the paper: d = 0). The inner path is not
differentiated, so memory does not grow with `inner_steps`.

The formula holds at a minimiser, so how far from one the inner loop stopped is reported beside it:
`stationarity` = |grad L^S(phi) + lambda (phi - theta)| / |grad L^S(theta)|, and for the solver `cg_residual` =
|A x - b| / |b| and `cg_negative`, whether a direction with p'Ap < 0 was met: then phi is no minimiser.

The released code differs from the paper (its prox term enters as one step after plain SGD, and its system is
(1 + damping) I + H/(lambda + 10)); this file follows the paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import grad

from metarun.algorithms import common
from metarun.algorithms.common import FastWeights
from metarun.errors import require
from metarun.inner import sgd
from metarun.linalg import axpy, conjugate_gradient, dot, hessian_product, norm, scale, sub
from metarun.types import Batch, Kind, Loss, Metrics, Model, Objective, Params, Rule, Task


@dataclass(frozen=True)
class IMAML:
    """Learn the centre of a proximal term, differentiating its minimiser implicitly."""

    model: Model
    loss: Loss
    prox: float
    inner_lr: float
    inner_steps: int
    test_inner_steps: int
    cg_steps: int
    cg_damping: float

    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    head: ClassVar[bool] = True

    def __post_init__(self) -> None:
        common.check_inner_loop(self.inner_lr, self.inner_steps, self.test_inner_steps)
        require(self.prox > 0, "prox", self.prox, "must be above 0 (lambda of the proximal term)")
        require(self.cg_steps >= 1, "cg_steps", self.cg_steps, "must be at least 1")
        require(self.cg_damping >= 0, "cg_damping", self.cg_damping, "must be at least 0")

    def init(self, seed: int) -> Params:
        return self.model.init(seed)

    def adapt(self, params: Params, support: Batch) -> FastWeights:
        return common.adapt(self, params, support)

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[FastWeights]:
        return common.adaptations(self, params, support, steps)

    def predict(self, adapted: FastWeights, x: Tensor) -> Tensor:
        return self.model.apply(adapted.params, x, adapted.stats)

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        phi = self.adapt(params, task.support).params
        b, metrics = common.query_gradient(self, phi, task)
        support_loss = common.batch_loss(self.model, self.loss, task.support)
        hessian = hessian_product(lambda phi: support_loss(phi, 0), phi)

        def product(v: Params) -> Params:
            return axpy(1 / self.prox, hessian(v), scale(1 + self.cg_damping, v))

        solution = conjugate_gradient(product, b, self.cg_steps)
        return solution.x, metrics | {
            "distance": common.distance(phi, params),
            "stationarity": self._stationarity(params, phi, task.support),
            "cg_residual": solution.residual,
            "cg_negative": (solution.min_curvature < 0).to(solution.residual.dtype),
        }

    @property
    def inner_rule(self) -> Rule:
        return sgd(self.inner_lr)

    def inner_objective(self, params: Params, support: Batch) -> Objective:
        support_loss = common.batch_loss(self.model, self.loss, support)

        def objective(phi: Params, step: int) -> Tensor:
            away = sub(phi, params)
            return support_loss(phi, step) + self.prox / 2 * dot(away, away)

        return objective

    def _stationarity(self, theta: Params, phi: Params, support: Batch) -> Tensor:
        gradient = grad(common.batch_loss(self.model, self.loss, support))
        at_start = norm(gradient(theta, 0))
        residual = norm(axpy(self.prox, sub(phi, theta), gradient(phi, 0)))
        return residual / at_start.clamp_min(torch.finfo(at_start.dtype).tiny)
