r"""Predictive divergence: how far adaptation moved the network's *predictions*, as a KL in nats, a mean over rows.

    classification, p = softmax(z):
      direction=forward   Omega = mean_m KL(p_theta || p_phi)     Omega_phi = mean_m J_phi^T (p_phi - p_theta)
      direction=reverse   Omega = mean_m KL(p_phi || p_theta)     Omega_phi = mean_m J_phi^T D_phi (z_phi - z_theta)
    regression, N(f, std^2) with a fixed std:
                          Omega = mean_m |f_phi - f_theta|^2 / (2 std^2)      a sum over outputs, the same in both
                          Omega_phi = mean_m J_phi^T (f_phi - f_theta) / std^2

J = dz/dphi of one row, D = diag(p) - p p^T. For small d = phi - theta all of them are (1/2) d^T F d with F the Fisher
information of the predictions at theta: mean_m J^T D J, or mean_m J^T J / std^2.

The expectation is over `rows`: the support set's inputs, with any `where`, or the query set's, with where=outer only,
since adaptation may not see queries. Labels do not enter. theta is differentiated as well as phi: in the outer
objective the penalty may also be lowered by moving the initial predictions.

With labels that are shuffled from task to task, what the initial classifier predicts has no meaning for the task, and
staying near it only resists confident adaptation; in regression it is a proximal term in function space. Fewer rows
times outputs than weights leave Omega_phiphi singular: put prox_l2 beside it where iMAML is to solve with it. Forward
KL and knowledge distillation share the formula: Hinton, Vinyals, Dean 2015, arXiv 1503.02531.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.algorithms.penalty_protocols import Adaptation
from metarun.errors import require
from metarun.regularizers.rows import check_rows, predict_rows, where_for
from metarun.types import Kind

DIRECTIONS = ("forward", "reverse")


@dataclass(frozen=True)
class PredictiveKL:
    kind: Kind = "classification"
    direction: str = "forward"
    rows: str = "support"
    std: float = 1.0

    def __post_init__(self) -> None:
        require(self.direction in DIRECTIONS, "direction", self.direction, "choices: " + ", ".join(DIRECTIONS))
        check_rows(self.rows)
        require(0 < self.std < float("inf"), "std", self.std, "must be above 0 and finite")

    @property
    def allowed_where(self) -> tuple[str, ...]:
        return where_for(self.rows)

    def between(self, at: Adaptation) -> Tensor:
        before, after = (predict_rows(at, weights, self.rows) for weights in (at.theta, at.phi))
        if self.kind == "regression":
            return gaussian_kl(after, before, self.std)
        return softmax_kl(before, after) if self.direction == "forward" else softmax_kl(after, before)


def softmax_kl(z_p: Tensor, z_q: Tensor) -> Tensor:
    """Mean over rows of KL(softmax z_p || softmax z_q), logits [M, N]."""
    log_p, log_q = torch.log_softmax(z_p, -1), torch.log_softmax(z_q, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def gaussian_kl(f_p: Tensor, f_q: Tensor, std: float) -> Tensor:
    """Mean over rows of KL(N(f_p, std^2 I) || N(f_q, std^2 I)), means [M, d]."""
    return (f_p - f_q).square().sum(-1).mean() / (2 * std**2)
