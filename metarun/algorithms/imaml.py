r"""iMAML (Rajeswaran, Finn, Kakade, Levine 2019, arXiv 1909.04630), with any inner penalty.

    phi* = argmin_phi  L^S(phi) + Omega(theta, phi)                     (here: `inner_steps` gradient steps)
    Omega = (lambda/2) |phi - theta|^2 + the inner terms of `reg`
    meta-gradient  g = -Omega_pt^T A^{-1} grad L^Q(phi*) + d/dtheta of outer penalties,   A = H + (1 + d) Omega_pp

Symbols: lambda `prox`, inner rate `inner_lr` on the *mean* loss, `cg_steps` conjugate-gradient steps for the linear
system, `cg_damping` d (the paper: 0), H the Hessian of L^S, Omega_pp and Omega_pt the second derivatives by phi twice
and by phi and theta, all at phi*. For the proximal term alone this is the paper's (I + H/lambda)^{-1} grad L^Q, damped
to ((1 + d) I + H/lambda)^{-1}. Only products with vectors are taken; the inner path is not differentiated, so memory
does not grow with `inner_steps`. `prox=0` leaves the whole inner penalty to `reg`.

`adapted` names what the inner loop moves, by how the names begin; null moves everything. With m the moved part and u
the rest, phi_u = theta_u, the linear system is that of the rows and columns of m, and the gradient by theta_u is
grad_u L^Q(phi*) - d/dtheta_u <grad_m (L^S + Omega), A_mm^{-1} grad_m L^Q>.

`curvature=gauss_newton` puts G = J' L J in the place of H, J the Jacobian of the network's outputs on the support set
and L the Hessian of the loss by them (Schraudolph 2002, Neural Computation 14). Without the outputs' own curvature A
has no negative eigenvalue, which H of a network with batch normalisation on few images has. Where support losses are
small the two are near.

The formula holds at a minimiser, so how far from one the inner loop stopped is reported beside it:
`stationarity` = |grad (L^S + Omega)(phi)| / |grad L^S(theta)|, and for the solver `cg_residual` =
|A x - b| / |b| and `cg_negative`, whether a direction with p'Ap < 0 was met: then phi is no minimiser.

The released code differs from the paper (its prox term enters as one step after plain SGD, and its system is
(1 + damping) I + H/(lambda + 10)); this file follows the paper. The general Omega: differentiate the stationarity
grad L^S(phi) + Omega_phi(theta, phi) = 0 by theta.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from metarun.algorithms import common
from metarun.algorithms.common import FastWeights
from metarun.algorithms.inner_loop import descend, is_adapted, last, sgd
from metarun.algorithms.objective import NO_REGULARIZATION, Regularization
from metarun.algorithms.penalty_protocols import Adaptation
from metarun.compute.linalg import (
    Solution,
    axpy,
    conjugate_gradient,
    dot,
    gauss_newton,
    gradient,
    gradient_and_hvp,
    norm,
    scale,
    sub,
)
from metarun.errors import require
from metarun.types import Batch, Kind, Loss, Metrics, Model, Objective, Params, Task, UpdateRule

Product = Callable[[Params], Params]
CURVATURES = ("hessian", "gauss_newton")


class Expansion(NamedTuple):
    """The inner problem L^S + Omega around phi, by the weights m that the inner loop moves."""

    slope: Params  # grad_m (L^S + Omega)
    hessian: Product  # v -> H_mm v
    curvature: Product  # v -> Omega_mm v
    mixed: Product  # v -> d/dtheta <grad_m (L^S + Omega), v>, the weights that do not move being those of theta


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
    regularization: Regularization = NO_REGULARIZATION
    adapted: tuple[str, ...] | None = None
    curvature: str = "hessian"

    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    head: ClassVar[bool] = True

    def __post_init__(self) -> None:
        common.check_inner_loop(self.inner_lr, self.inner_steps, self.test_inner_steps)
        alone = not self.regularization.acts_inside
        needed = "must be above 0 (lambda of the proximal term), or 0 where reg has an inner penalty in its place"
        require(self.prox > 0 or (self.prox == 0 and not alone), "prox", self.prox, needed)
        require(self.cg_steps >= 1, "cg_steps", self.cg_steps, "must be at least 1")
        require(self.cg_damping >= 0, "cg_damping", self.cg_damping, "must be at least 0")
        require(self.curvature in CURVATURES, "curvature", self.curvature, "choices: " + ", ".join(CURVATURES))
        require(self.adapted is None or len(self.adapted) > 0, "adapted", [], "names nothing; null adapts everything")

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
        by_theta, b, metrics = common.outer_gradients(self, params, phi, task)
        around = self._expansion(params, phi, task.support)
        pulled, solution = self._pulled_back(phi, around, b)
        return axpy(1.0, by_theta, pulled), metrics | {
            "distance": common.distance(phi, params),
            "stationarity": self._stationarity(params, phi, task.support, around.slope),
            "cg_residual": solution.residual,
            "cg_negative": (solution.min_curvature < 0).to(solution.residual.dtype),
        }

    @property
    def sees_adaptation(self) -> bool:
        return True

    @property
    def inner_rule(self) -> UpdateRule:
        return common.add_proximal_step(sgd(self.inner_lr)._replace(adapted=self.adapted), self.regularization)

    def inner_objective(self, params: Params, support: Batch) -> Objective:
        support_loss = common.bind_loss(self.model, self.loss, support)

        def objective(phi: Params, step: int) -> Tensor:
            return support_loss(phi, step) + self._proximal_term(params, phi)

        return common.add_inner_penalties(self, params, support, objective)

    def _proximal_term(self, theta: Params, phi: Params) -> Tensor:
        away = sub(phi, theta)
        return self.prox / 2 * dot(away, away)

    def _expansion(self, theta: Params, phi: Params, support: Batch) -> Expansion:
        start, support_loss = self._moved(phi)[0], common.bind_loss(self.model, self.loss, support)
        slope, hessian = self._second_order(phi, start, support)
        if self.adapted is None and not self.regularization.acts_inside:
            # The proximal term's derivatives in closed form: by a graph they cost a tenth of a small network's step.
            slope = axpy(self.prox, sub(start, theta), slope)
            return Expansion(slope, hessian, lambda v: scale(self.prox, v), lambda v: scale(-self.prox, v))
        omega = self._omega(support)
        push, curvature = gradient_and_hvp(lambda part: omega(theta, phi | part), start)

        def whole(theta: Params, part: Params) -> Tensor:
            value = omega(theta, theta | part)
            return value if self.adapted is None else value + support_loss(theta | part, 0)

        def mixed(v: Params) -> Params:
            return gradient(lambda at: dot(gradient(lambda part: whole(at, part), start), v), theta)

        return Expansion(axpy(1.0, push, slope), hessian, curvature, mixed)

    def _second_order(self, phi: Params, start: Params, support: Batch) -> tuple[Params, Product]:
        """grad_m L^S, and v -> H_mm v or G_mm v."""

        def outputs(part: Params) -> Tensor:
            return self.model.apply(phi | part, support.x)

        def loss(z: Tensor) -> Tensor:
            return self.loss(z, support.y)

        if self.curvature == "gauss_newton":
            return gauss_newton(outputs, loss, start)
        return gradient_and_hvp(lambda part: loss(outputs(part)), start)

    def _pulled_back(self, phi: Params, around: Expansion, b: Params) -> tuple[Params, Solution]:
        """-Omega_pt^T A^{-1} b, b itself for what is not adapted, and how the system was solved.

        It is solved as (A / c) x = b with c = <b, Omega_pp b> / |b|^2, which for the proximal term is lambda: then
        x = b, where the solver ends at once on negative curvature, means the first-order meta-gradient.
        """
        free = self._free(phi)
        b, direct = self._moved(b)
        b = free(b)
        c = _positive(dot(b, around.curvature(b)) / dot(b, b))

        def product(v: Params) -> Params:
            return scale(1 / c, free(axpy(1 + self.cg_damping, around.curvature(v), around.hessian(v))))

        solution = conjugate_gradient(product, b, self.cg_steps)
        pulled = around.mixed(scale(-1 / c, solution.x))
        return pulled | {k: pulled.get(k, 0.0) + g for k, g in direct.items()}, solution

    def _moved(self, x: Params) -> tuple[Params, Params]:
        """What the inner loop moves, and the rest."""
        names = [k for k in x if is_adapted(k, self.inner_rule)]
        return {k: x[k] for k in names}, {k: v for k, v in x.items() if k not in names}

    def _omega(self, support: Batch) -> Callable[[Params, Params], Tensor]:
        """theta, phi -> all that the inner problem adds to L^S, also what the inner loop takes as proximal steps."""

        def omega(theta: Params, phi: Params) -> Tensor:
            at = Adaptation(theta, phi, support, None, self.model, self.loss, {})
            return self._proximal_term(theta, phi) + self.regularization.whole_inner(at)

        return omega

    def _free(self, phi: Params) -> Callable[[Params], Params]:
        """Keeps of a vector what proximal steps have not set to zero: a weight at a kink stays there as theta moves."""
        held = self.regularization.held_inner(phi)
        return lambda v: {k: torch.where(held[k], 0.0, g) if k in held else g for k, g in v.items()}

    def _stationarity(self, theta: Params, phi: Params, support: Batch, slope: Params) -> Tensor:
        """Of the gradient at phi; with inner proximal steps of the gradient mapping (phi - phi') / inner_lr in its
        place, phi' after one more step."""
        support_loss = common.bind_loss(self.model, self.loss, support)
        at_start = norm(self._moved(gradient(lambda at: support_loss(at, 0), theta))[0])
        if self.regularization.inner_proximal:
            onwards = last(descend(self.inner_objective(theta, support), phi, self.inner_rule, 1))
            slope = scale(1 / self.inner_lr, sub(phi, onwards))
        return norm(slope) / at_start.clamp_min(torch.finfo(at_start.dtype).tiny)


def _positive(c: Tensor) -> Tensor:
    """c, or 1 where it is no scale to divide by: a penalty without curvature, a zero right-hand side."""
    return torch.where(c > torch.finfo(c.dtype).eps, c, 1.0)
