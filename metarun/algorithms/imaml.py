r"""iMAML (Rajeswaran, Finn, Kakade, Levine 2019, arXiv 1909.04630), with any inner penalty.

    phi* = argmin_phi  L^S(phi) + Omega(theta, phi)                     (here: `inner_steps` gradient steps)
    Omega = (lambda/2) |phi - theta|^2 + the inner terms of `reg`
    meta-gradient  g = -Omega_pt^T A^{-1} grad L^Q(phi*) + d/dtheta of outer penalties,   A = H + (1 + d) Omega_pp

Symbols: lambda `prox`, inner rate `inner_lr` on the *mean* loss, `cg_steps` conjugate-gradient steps for the linear
system, `cg_damping` d (the paper: 0), H the Hessian of L^S, Omega_pp and Omega_pt the second derivatives by phi twice
and by phi and theta, all at phi*. For the proximal term alone this is the paper's (I + H/lambda)^{-1} grad L^Q, damped
to ((1 + d) I + H/lambda)^{-1}. Only products with vectors are taken; the inner path is not differentiated, so memory
does not grow with `inner_steps`. `prox=0` leaves the whole inner penalty to `reg`.

`inner_solver` says how phi* is sought: by steps of the fixed rate `inner_lr` (`gradient`), or at rates from the
curvature that they meet (`adaptive`, and `nesterov` with momentum: `inner_loop.adaptive`), where `inner_lr` is the
first rate only. `linear_solver=neumann` takes x = -a sum_{j < k} (I - a A)^j b, a = `inner_lr`, k = `cg_steps`, in the
place of conjugate gradient: at a minimiser that is the derivative through the last k gradient steps (Lorraine, Vicol,
Duvenaud 2020, arXiv 1911.02590).

`adapted` lists the name prefixes of the adapted parameters; null adapts everything. With m the adapted part and u the
rest, phi_u = theta_u, the linear system is that of the rows and columns of m, and the gradient by theta_u is
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
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from metarun.algorithms import inner_loop
from metarun.algorithms.inner_loop import FastWeights, adaptive, descend, last, sgd, split_adapted
from metarun.algorithms.objective import NO_REGULARIZATION, Entry, Regularization
from metarun.algorithms.penalty_protocols import Adaptation
from metarun.compute.linalg import (
    Solution,
    axpy,
    conjugate_gradient,
    dot,
    gauss_newton,
    gradient,
    gradient_and_hvp,
    neumann_series,
    norm,
    scale,
    sub,
)
from metarun.errors import require
from metarun.types import Batch, Kind, Loss, Metrics, Model, Objective, Params, Task, UpdateRule

Product = Callable[[Params], Params]
CURVATURES = ("hessian", "gauss_newton")
LINEAR_SOLVERS = ("cg", "neumann")
INNER_SOLVERS = ("gradient", "adaptive", "nesterov")


class ImplicitSystem(NamedTuple):
    """The linear system that pulls a gradient b by phi* back to theta, on the adapted parameters m, at phi*.

    A x = -b,   A = H_mm + (1 + d) Omega_mm;   g = B^T x,   B = d/dtheta grad_m (L^S + Omega)
    """

    rhs: Params  # b; 0 for the weights that `fixed` holds
    hessian: Product  # v -> H_mm v
    penalty_hessian: Product  # v -> Omega_mm v
    mixed_vjp: Product  # v -> B^T v, the parameters that are not adapted being those of theta
    damping: float  # d
    fixed: Params  # True where a weight stays at a kink of Omega as theta moves; no entry: nowhere in this tensor

    def matvec(self, v: Params) -> Params:
        """A v."""
        return self.restrict(axpy(1 + self.damping, self.penalty_hessian(v), self.hessian(v)))

    def restrict(self, v: Params) -> Params:
        """v with 0 where a weight is fixed."""
        return {k: torch.where(self.fixed[k], 0.0, g) if k in self.fixed else g for k, g in v.items()}

    def expand(self, steps: int, rate: float) -> Solution:
        """x by so many terms of the Neumann series, with 1 / `rate` above half of the largest curvature."""
        solution = neumann_series(self.matvec, self.rhs, steps, rate)
        return solution._replace(x=scale(-1.0, solution.x))

    def solve(self, steps: int) -> Solution:
        """x after so many conjugate-gradient steps.

        They solve (A / c) y = b, x = -y / c, with c = <b, Omega_mm b> / |b|^2, which for the proximal term is lambda:
        y = b, where the solver ends at once on negative curvature, then means the first-order meta-gradient.
        """
        b = self.rhs
        c = positive_or_one(dot(b, self.penalty_hessian(b)) / dot(b, b))
        solution = conjugate_gradient(lambda v: scale(1 / c, self.matvec(v)), b, steps)
        return solution._replace(x=scale(-1 / c, solution.x))


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
    inner_solver: str = "gradient"
    linear_solver: str = "cg"
    zero_head: bool = False

    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    head: ClassVar[bool] = True

    def __post_init__(self) -> None:
        inner_loop.check_inner_loop(
            self.inner_lr, self.inner_steps, self.test_inner_steps, self.adapted, self.zero_head
        )
        alone = not self.regularization.select("inner")
        needed = "must be above 0 (lambda of the proximal term), or 0 where reg has an inner penalty in its place"
        require(self.prox > 0 or (self.prox == 0 and not alone), "prox", self.prox, needed)
        require(self.cg_steps >= 1, "cg_steps", self.cg_steps, "must be at least 1")
        require(self.cg_damping >= 0, "cg_damping", self.cg_damping, "must be at least 0")
        require(self.curvature in CURVATURES, "curvature", self.curvature, "choices: " + ", ".join(CURVATURES))
        solver, linear = self.inner_solver, self.linear_solver
        require(solver in INNER_SOLVERS, "inner_solver", solver, "choices: " + ", ".join(INNER_SOLVERS))
        require(linear in LINEAR_SOLVERS, "linear_solver", linear, "choices: " + ", ".join(LINEAR_SOLVERS))
        needed = "must be cg, or inner_solver gradient: the series needs a fixed rate"
        require(linear == "cg" or solver == "gradient", "linear_solver", linear, needed)
        shrinks = bool(self.regularization.select(Entry.INNER_STEP))
        needed = "must be gradient or adaptive where reg has an inner penalty with method=prox, a step after each step"
        require(solver != "nesterov" or not shrinks, "inner_solver", solver, needed)

    def init(self, seed: int) -> Params:
        return inner_loop.init_weights(self.model, seed, self.zero_head)

    def rescale(self, ratio: float) -> IMAML:
        """The learner whose inner problem weighs each class against the proximal term as this one's does, for `ratio`
        times as many classes: N lambda and inner_lr / N stay the same, for each class weighs 1 / N in the mean loss."""
        return replace(self, inner_lr=self.inner_lr * ratio, prox=self.prox / ratio)

    def adapt(self, params: Params, support: Batch) -> FastWeights:
        return inner_loop.adapt(self, params, support)

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[FastWeights]:
        return inner_loop.adaptations(self, params, support, steps)

    def predict(self, adapted: FastWeights, x: Tensor) -> Tensor:
        return self.model.apply(adapted.params, x, adapted.stats)

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        phi = self.adapt(params, task.support).params
        by_theta, by_phi, metrics = inner_loop.outer_gradients(self, params, phi, task)
        b, direct = split_adapted(by_phi, self.inner_rule)
        slope, system = self.implicit_system(params, phi, task.support, b)
        pulled, solution = self.pull_back(system)
        pulled |= {k: pulled.get(k, 0.0) + g for k, g in direct.items()}  # phi = theta where nothing is adapted
        return axpy(1.0, by_theta, pulled), metrics | {
            "stationarity": self._stationarity(params, phi, task.support, slope),
            "cg_residual": solution.residual,
            "cg_negative": (solution.min_curvature < 0).to(solution.residual.dtype),
        }

    def pull_back(self, system: ImplicitSystem) -> tuple[Params, Solution]:
        """B^T x, the gradient by theta through phi*, and the solution x. `job=profile` reports its time."""
        steps, series = self.cg_steps, self.linear_solver == "neumann"
        solution = system.expand(steps, self.inner_lr) if series else system.solve(steps)
        return system.mixed_vjp(solution.x), solution

    @property
    def sees_adaptation(self) -> bool:
        return True

    @property
    def approximation(self) -> str | None:
        parts = [f"damped by {self.cg_damping:g}"] if self.cg_damping else []
        parts += ["by the Gauss-Newton matrix"] if self.curvature == "gauss_newton" else []
        parts += ["by a Neumann series"] if self.linear_solver == "neumann" else []
        return "implicit gradient " + ", ".join(parts) if parts else None

    @property
    def inner_rule(self) -> UpdateRule:
        rule = sgd(self.inner_lr)
        if self.inner_solver != "gradient":
            rule = adaptive(self.inner_lr, self.prox, momentum=self.inner_solver == "nesterov")
        return inner_loop.add_proximal_step(rule._replace(adapted=self.adapted), self.regularization)

    def inner_objective(self, params: Params, support: Batch) -> Objective:
        support_loss = inner_loop.bind_loss(self.model, self.loss, support)

        def objective(phi: Params, step: int) -> Tensor:
            return support_loss(phi, step) + self._proximal_term(params, phi)

        return inner_loop.add_inner_penalties(self, params, support, objective)

    def _proximal_term(self, theta: Params, phi: Params) -> Tensor:
        away = sub(phi, theta)
        return self.prox / 2 * dot(away, away)

    def implicit_system(self, theta: Params, phi: Params, support: Batch, b: Params) -> tuple[Params, ImplicitSystem]:
        """grad_m (L^S + Omega) at phi, and the system there for the right-hand side b."""
        start = split_adapted(phi, self.inner_rule)[0]
        support_loss = inner_loop.bind_loss(self.model, self.loss, support)
        slope, hessian = self._support_hessian(phi, start, support)
        if self.adapted is None and not self.regularization.select("inner"):
            # The proximal term's derivatives in closed form: by a graph they cost a tenth of a small network's step.
            slope = axpy(self.prox, sub(start, theta), slope)
            by_prox, mixed_by_prox = (partial(scale, factor) for factor in (self.prox, -self.prox))
            return slope, ImplicitSystem(b, hessian, by_prox, mixed_by_prox, self.cg_damping, {})

        def omega(theta: Params, phi: Params) -> Tensor:
            """All that the inner problem adds to L^S, also what the inner loop takes as proximal steps."""
            at = Adaptation(theta, phi, support, None, self.model, self.loss, {}, self.adapted)
            return self._proximal_term(theta, phi) + self.regularization.inner_penalty(at, proximal=True)

        def inner_problem(theta: Params, part: Params) -> Tensor:
            value = omega(theta, theta | part)
            return value if self.adapted is None else value + support_loss(theta | part, 0)

        def mixed_vjp(v: Params) -> Params:
            return gradient(lambda at: dot(gradient(lambda part: inner_problem(at, part), start), v), theta)

        push, penalty_hessian = gradient_and_hvp(lambda part: omega(theta, phi | part), start)
        fixed = self.regularization.mask_zeros(phi)
        system = ImplicitSystem(b, hessian, penalty_hessian, mixed_vjp, self.cg_damping, fixed)
        return axpy(1.0, push, slope), system._replace(rhs=system.restrict(b))

    def _support_hessian(self, phi: Params, start: Params, support: Batch) -> tuple[Params, Product]:
        """grad_m L^S, and v -> H_mm v or G_mm v."""

        def outputs(part: Params) -> Tensor:
            return self.model.apply(phi | part, support.x)

        def loss(z: Tensor) -> Tensor:
            return self.loss(z, support.y)

        if self.curvature == "gauss_newton":
            return gauss_newton(outputs, loss, start)
        return gradient_and_hvp(lambda part: loss(outputs(part)), start)

    def _stationarity(self, theta: Params, phi: Params, support: Batch, slope: Params) -> Tensor:
        """|slope| / |grad L^S(theta)|, where slope is the gradient at phi, or with inner proximal steps the gradient
        mapping (phi - phi') / inner_lr, phi' after one more step."""
        support_loss = inner_loop.bind_loss(self.model, self.loss, support)
        at_start = norm(split_adapted(gradient(lambda at: support_loss(at, 0), theta), self.inner_rule)[0])
        if self.regularization.select(Entry.INNER_STEP):
            rule = replace(self, inner_solver="gradient").inner_rule
            onwards = last(descend(self.inner_objective(theta, support), phi, rule, 1))
            slope = scale(1 / self.inner_lr, sub(phi, onwards))
        return norm(slope) / at_start.clamp_min(torch.finfo(at_start.dtype).tiny)


def positive_or_one(c: Tensor) -> Tensor:
    """c, or 1 where it is no scale to divide by: a penalty without curvature, a zero right-hand side."""
    return torch.where(c > torch.finfo(c.dtype).eps, c, 1.0)
