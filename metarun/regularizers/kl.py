r"""KL divergence of Gaussians over weights: Omega(theta, phi) = KL( N(phi, diag s^2) || N(theta, diag t^2) ), in nats.

    Omega = (1/2) sum_j [ s_j^2/t_j^2 - 1 - ln(s_j^2/t_j^2) + (phi_j - theta_j)^2 / t_j^2 ]      a sum over weights j
    Omega_phi = (phi - theta) / t^2        Omega_phiphi = 1/t^2        Omega_phitheta = -1/t^2
    dOmega/d ln t_j = 1 - ( s_j^2 + (phi_j - theta_j)^2 ) / t_j^2,    0 at t_j^2 = s_j^2 + (phi_j - theta_j)^2

phi is the mean of a task's posterior, theta that of the prior which the tasks share. s is `posterior_std`, t is
`prior_std`, one number for all weights (isotropic) or by layer (`posterior_stds`, `prior_stds`, by name prefixes of the
tensors: {head: 0.1}; others have the number for all).

As long as s and t are fixed, they only scale the proximal L2 term by 1/t^2 and add a constant: `reg=prox_l2` with
the weight w/t^2 trains the same. The divergence says something of its own with `learned=true`, where ln t are
meta-parameters that start from the given t: one for all weights (`learn=scalar`), one for each tensor (`learn=layer`)
or one for each weight (`learn=diagonal`). In the outer objective t then approaches the spread of the tasks' solutions,
t^2 = mean over tasks of s^2 + (phi - theta)^2, so that the constant counts. In the inner loop it does not reach phi,
and t is trained only by what it does to phi, as a weight of prox_l2 is.

Learners that take phi for theta plus a constant (FOMAML, Reptile) get nothing from it in the outer objective, as from
any penalty on phi - theta alone: its two partial derivatives cancel. There it belongs into the inner loop.

The sum grows with the number of weights: a weight that suits one network is too large for a bigger one. Sources:
Amit, Meir 2018, arXiv 1711.01244 (a prior over weights learned from tasks); Rajeswaran et al. 2019, arXiv 1909.04630
(the Gaussian reading of the proximal term, lambda = 1/t^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from metarun.algorithms.penalty_protocols import Adaptation
from metarun.compute.linalg import sum_scalars
from metarun.errors import require
from metarun.regularizers.selection import LEARN, init_learned, learned_value, select_tensors, value_for
from metarun.types import Params


@dataclass(frozen=True)
class KL:
    posterior_std: float = 1.0
    prior_std: float = 1.0
    posterior_stds: dict[str, float] = field(default_factory=dict)
    prior_stds: dict[str, float] = field(default_factory=dict)
    learned: bool = False
    learn: str = "scalar"
    targets: tuple[str, ...] | None = None

    distance_only: ClassVar[bool] = True  # a function of phi - theta

    def __post_init__(self) -> None:
        for key in ("posterior_std", "prior_std"):
            value = getattr(self, key)
            require(0 < value < math.inf, key, value, "must be above 0 and finite")
        for key in ("posterior_stds", "prior_stds"):
            values = getattr(self, key)
            require(all(0 < v < math.inf for v in values.values()), key, dict(values), "must be above 0 each")
        require(self.learn in LEARN, "learn", self.learn, "choices: " + ", ".join(LEARN))
        one = self.learned and self.learn == "scalar"
        require(not (one and self.prior_stds), "learn", self.learn, "is one std for all; prior_stds need learn=layer")

    def init(self, weights: Params) -> Params:
        """ln t, from the given t."""
        if not self.learned:
            return {}
        return init_learned("log_std", self.learn, select_tensors(weights, self.targets), self._given_log)

    def between(self, at: Adaptation) -> Tensor:
        return sum_scalars([self._of_tensor(name, at) for name in select_tensors(at.phi, self.targets)]) / 2

    def _of_tensor(self, name: str, at: Adaptation) -> Tensor:
        """Twice the divergence of one tensor's weights; ln(s/t) is one number or has the tensor's shape."""
        away = at.phi[name] - at.theta[name]
        log_t = learned_value("log_std", name, at.own)
        if log_t is None:
            log_t = torch.full((), self._given_log(name), device=away.device, dtype=away.dtype)
        log_t = log_t.to(away.dtype)
        log_ratio = math.log(value_for(name, self.posterior_stds, self.posterior_std)) - log_t
        shape = torch.expm1(2 * log_ratio) - 2 * log_ratio  # s^2/t^2 - 1 - ln(s^2/t^2)
        return (shape + (-2 * log_t).exp() * away.square()).sum()

    def _given_log(self, name: str) -> float:
        """ln t as given, of the tensor `name`."""
        return math.log(value_for(name, self.prior_stds, self.prior_std))
