r"""MetaOptNet-SVM: a multi-class support vector machine on learned features (Lee, Maji, Ravichandran, Soatto 2019,
arXiv 1904.03758), after Crammer and Singer 2001.

    primal  min_W  1/2 sum_n |w_n|^2 + C sum_i max_n [ 1 - [n = y_i] + w_n . z_i - w_{y_i} . z_i ]
    dual    min_A  1/2 tr(A' G A) - tr(A' Y)   over A [S, N] with sum_n A_in = 0 and A_in <= C Y_in;   W = Z' A
    logits  a f(x) W

Symbols: f the network without its head; Z [S, D] the features of the support set, Y [S, N] its one-hot labels,
G = Z Z' + r I; C `margin_cost`, r `ridge` (the released code adds 1 to the diagonal), a the meta-parameter
`learned.scale`, which starts as `scale`. C Y - A is a point of the simplex of size C in each row, so that the dual is
solved by projected gradient steps with Nesterov's momentum, a fixed number of them, from A = 0:

    A_{k+1} = P( B_k - (G B_k - Y) / L ),   B_k = A_k + m (A_k - A_{k-1}),
    m = (sqrt(L) - sqrt(r)) / (sqrt(L) + sqrt(r))

with L = tr G, a bound of G's largest eigenvalue, and P the projection (by sorting). The meta-gradient is that of these
T = `solver_steps` steps. The paper's solver is an interior-point method, its gradient that of the exact solution, to
which both come near as T grows: T of some sqrt(L / r) steps and more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from metarun.algorithms import losses
from metarun.algorithms.embeddings import embed_episode, one_hot
from metarun.compute import linalg
from metarun.errors import require
from metarun.types import LEARNED, Batch, Kind, Loss, Metrics, Model, Params, Task

SCALE = LEARNED + "scale"


class Machine(NamedTuple):
    params: Params
    stats: Any  # that queries are normalised with
    weights: Tensor  # a W [D, N]


@dataclass(frozen=True)
class MetaOptNet:
    """Fit a support vector machine to the support set, and learn the features that it fits."""

    model: Model
    loss: Loss
    ways: int
    margin_cost: float
    ridge: float
    scale: float
    solver_steps: int

    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    head: ClassVar[bool] = False
    test_inner_steps: ClassVar[int] = 0

    def __post_init__(self) -> None:
        for name in ("margin_cost", "ridge", "scale"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, value, "must be above 0 and finite")
        require(self.solver_steps >= 1, "solver_steps", self.solver_steps, "must be at least 1")

    def init(self, seed: int) -> Params:
        return self.model.init(seed) | {SCALE: torch.tensor(self.scale)}

    def adapt(self, params: Params, support: Batch) -> Machine:
        w_DN = self._fit(params, self.model.apply(params, support.x), support.y)
        return Machine(params, self.model.query_stats(params, support.x), w_DN)

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Machine]:
        yield self.adapt(params, support)

    def predict(self, adapted: Machine, x: Tensor) -> Tensor:
        return self.model.apply(adapted.params, x, adapted.stats) @ adapted.weights

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        def outer(params: Params) -> tuple[Tensor, Metrics]:
            z_SD, z_MD = embed_episode(self.model, params, task)
            return losses.score_prediction(self, z_MD @ self._fit(params, z_SD, task.support.y), task.query.y)

        return linalg.differentiate(outer, params)

    def _fit(self, params: Params, z_SD: Tensor, y_S: Tensor) -> Tensor:
        gram_SS = z_SD @ z_SD.T + self.ridge * torch.eye(len(z_SD), dtype=z_SD.dtype, device=z_SD.device)
        labels_SN = one_hot(y_S, self.ways, like=z_SD)
        a_SN = solve_dual(gram_SS, labels_SN, self.margin_cost, self.ridge, self.solver_steps)
        return params[SCALE] * (z_SD.T @ a_SN)


def solve_dual(gram_SS: Tensor, labels_SN: Tensor, cost: float, ridge: float, steps: int) -> Tensor:
    """A [S, N] after so many steps; no eigenvalue of G is below `ridge`."""
    bound = gram_SS.diagonal().sum()
    root = linalg.sqrt(bound)
    momentum = (root - math.sqrt(ridge)) / (root + math.sqrt(ridge))
    before = a_SN = torch.zeros_like(labels_SN)
    for _ in range(steps):
        ahead = a_SN + momentum * (a_SN - before)
        moved = ahead - (gram_SS @ ahead - labels_SN) / bound
        before, a_SN = a_SN, cost * labels_SN - project_to_simplex(cost * labels_SN - moved, cost)
    return a_SN


def project_to_simplex(x_SN: Tensor, size: float) -> Tensor:
    """The nearest point of each row with entries of at least 0 that sum to `size`: max(x - t, 0) with the t that does
    so, from the sorted entries (Duchi et al. 2008)."""
    ordered_SN = x_SN.sort(dim=-1, descending=True).values
    counts_N = torch.arange(1, x_SN.shape[-1] + 1, dtype=x_SN.dtype, device=x_SN.device)
    thresholds_SN = (ordered_SN.cumsum(-1) - size) / counts_N
    # Of the candidates t_j, of the j largest entries, the largest is the one: t_j rises as long as entry j is above it.
    return (x_SN - thresholds_SN.amax(-1, keepdim=True)).clamp_min(0)
