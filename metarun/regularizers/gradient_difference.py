r"""Gradient difference: Omega(theta, phi) = |grad L(phi) - grad L(theta)|^2, L the support or query loss.

    with d = grad L(phi) - grad L(theta):
    Omega_phi = 2 H(phi) d        Omega_phitheta = -2 H(phi) H(theta)
    Omega_phiphi = 2 H(phi)^2 + 2 D^3 L(phi)[d]         (the third derivative, which is often dropped, is kept here)

It is small where the loss is nearly linear between theta and phi. For a small step it is (phi - theta)^T H^2
(phi - theta), and never more than beta^2 |phi - theta|^2 where L has beta-Lipschitz gradients. Directions in which the
loss is flat cost nothing at all, so that alone it fixes no minimiser: for iMAML put prox_l2 beside it (inner).

L is the mean loss of the support set (`rows=support`) with any `where`, or of the query set (`rows=query`) with
where=outer only. Inside of the inner loop every step takes a Hessian-vector product and MAML's meta-gradient a third
derivative; the largest stable inner rate falls, as the curvature of Omega is twice that of L squared. With ReLU these
derivatives are those of the smooth pieces. No canonical paper was found; gradients that agree are also what Reptile's
second-order term asks for (Nichol et al. 2018, arXiv 1803.02999).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.func import grad

from metarun.algorithms.penalty_protocols import Adaptation
from metarun.compute.linalg import dot, sub
from metarun.regularizers.rows import check_rows, predict_rows, row_targets, where_for
from metarun.regularizers.selection import select_tensors
from metarun.types import Params


@dataclass(frozen=True)
class GradientDifference:
    rows: str = "support"
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_rows(self.rows)

    @property
    def allowed_where(self) -> tuple[str, ...]:
        return where_for(self.rows)

    def between(self, at: Adaptation) -> Tensor:
        apart = sub(self._gradient(at, at.phi), self._gradient(at, at.theta))
        return dot(apart, apart)

    def _gradient(self, at: Adaptation, weights: Params) -> Params:
        """By the weights that `targets` names; the others are held."""

        def loss(part: Params) -> Tensor:
            outputs = predict_rows(at, {**weights, **part}, self.rows, third_order=True)
            return at.loss(outputs, row_targets(at, self.rows))

        return grad(loss)(select_tensors(weights, self.targets))
