r"""Proximal L2: Omega(theta, phi) = (1/2) sum_j f_j (phi_j - theta_j)^2, the term of iMAML, MinibatchProx and FedProx.

In the inner objective it keeps adaptation near its start; in the outer one it asks for initialisations from which
little adaptation is needed. With weight w, Omega_phiphi = w F and Omega_phitheta = -w F, F = diag(f).

f is 1 for all weights, or by layer (`factors`, by name prefixes: {head: 0.0, block0: 10.0}; others have 1).
With `learned=true`, f_j = exp(a), a trained by the meta-gradient from 0, one for all weights (`learn=scalar`), each
layer's tensor (`learn=layer`) or each weight (`learn=diagonal`). Sources: Rajeswaran et al. 2019, arXiv 1909.04630
(the scalar is learnable there); Zhou et al. 2019 (Meta-MinibatchProx).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from metarun.algorithms.penalty_protocols import Adaptation
from metarun.compute.linalg import sum_scalars
from metarun.errors import require
from metarun.regularizers.selection import LEARN, init_learned, learned_value, select_tensors, value_for
from metarun.types import Params


@dataclass(frozen=True)
class ProxL2:
    learned: bool = False
    learn: str = "scalar"
    factors: dict[str, float] = field(default_factory=dict)
    targets: tuple[str, ...] | None = None

    distance_only: ClassVar[bool] = True  # a function of phi - theta

    @property
    def unopposed(self) -> bool:
        """Whether the meta-gradient would drive the learned factors to 0 in the outer objective."""
        return self.learned

    def __post_init__(self) -> None:
        require(self.learn in LEARN, "learn", self.learn, "choices: " + ", ".join(LEARN))
        sound = all(f >= 0 for f in self.factors.values())
        require(sound, "factors", dict(self.factors), "must be at least 0 each")

    def init(self, weights: Params) -> Params:
        """The logarithms a, all 0."""
        if not self.learned:
            return {}
        return init_learned("log_factor", self.learn, select_tensors(weights, self.targets), lambda _: 0.0)

    def between(self, at: Adaptation) -> Tensor:
        return sum_scalars([self._of_tensor(name, at) for name in select_tensors(at.phi, self.targets)]) / 2

    def _of_tensor(self, name: str, at: Adaptation) -> Tensor:
        square = (at.phi[name] - at.theta[name]).square()
        log_factor = learned_value("log_factor", name, at.own)
        if log_factor is not None:
            square = log_factor.exp() * square
        return value_for(name, self.factors, 1.0) * square.sum()
