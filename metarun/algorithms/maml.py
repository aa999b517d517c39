r"""MAML and FOMAML (Finn, Abbeel, Levine 2017, arXiv 1703.03400).

    phi_0 = theta;   phi_{k+1} = phi_k - alpha grad L^S(phi_k),   k = 0 .. T-1
    meta-gradient  g = d/dtheta L^Q(phi_T(theta))
                     = [prod_k (I - alpha H^S(phi_k))] grad L^Q(phi_T)      (leftmost factor k = 0)
    FOMAML         g = grad L^Q(phi_T)

Symbols: alpha `inner_lr`, T `inner_steps` (at test `test_inner_steps`), L^S and L^Q the *mean* losses of
support and query set, H^S the Hessian of L^S. The released MAML code sums its classification loss over
ways: its rate a on N ways is N a here (0.4 on 5-way Omniglot is 2.0).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from metarun.algorithms import common
from metarun.algorithms.common import FastWeights
from metarun.inner import sgd
from metarun.types import Batch, Kind, Loss, Metrics, Model, Objective, Params, Rule, Task


@dataclass(frozen=True)
class MAML:
    """Learn an initialisation from which a few gradient steps fit a new task."""

    model: Model
    loss: Loss
    inner_lr: float
    inner_steps: int
    test_inner_steps: int
    first_order: bool

    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    head: ClassVar[bool] = True

    def __post_init__(self) -> None:
        common.check_inner_loop(self.inner_lr, self.inner_steps, self.test_inner_steps)

    def init(self, seed: int) -> Params:
        return self.model.init(seed)

    def adapt(self, params: Params, support: Batch) -> FastWeights:
        return common.adapt(self, params, support)

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[FastWeights]:
        return common.adaptations(self, params, support, steps)

    def predict(self, adapted: FastWeights, x: Tensor) -> Tensor:
        return self.model.apply(adapted.params, x, adapted.stats)

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        if self.first_order:
            # Adapting outside the gradient transform records no graph of the inner loop at all.
            phi = self.adapt(params, task.support).params
            grads, metrics = common.query_gradient(self, phi, task)
            return grads, metrics | {"distance": common.distance(phi, params)}

        def outer(theta: Params) -> tuple[Tensor, Metrics]:
            adapted = self.adapt(theta, task.support)
            loss, metrics = common.scored(self, self.predict(adapted, task.query.x), task.query.y)
            return loss, metrics | {"distance": common.distance(adapted.params, theta)}

        return common.gradient(outer, params)

    @property
    def inner_rule(self) -> Rule:
        return sgd(self.inner_lr)

    def inner_objective(self, params: Params, support: Batch) -> Objective:
        return common.batch_loss(self.model, self.loss, support)
