r"""MAML and FOMAML (Finn, Abbeel, Levine 2017, arXiv 1703.03400).

    phi_0 = theta;   phi_{k+1} = phi_k - alpha grad L^S(phi_k),   k = 0 .. T-1
    meta-gradient  g = d/dtheta L^Q(phi_T(theta))
                     = [prod_k (I - alpha H^S(phi_k))] grad L^Q(phi_T)      (leftmost factor k = 0)
    FOMAML         g = grad L^Q(phi_T)

Symbols: alpha `inner_lr`, T `inner_steps` (at test `test_inner_steps`), L^S and L^Q the *mean* losses of
support and query set, H^S the Hessian of L^S. The released MAML code sums its classification loss over
ways: its rate a on N ways is N a here (0.4 on 5-way Omniglot is 2.0).

`adapted` names what the inner loop moves, by how the names begin: ["head"] is ANIL (Raghu, Raghu, Bengio, Vinyals
2020, arXiv 1909.09157); null moves everything. FOMAML takes a penalty Omega(theta, phi) of the outer objective by both
partial derivatives, as if phi were theta plus a constant.

`inner_checkpoint` is for the second-order gradient: it keeps phi at every n-th step instead of the graph of all steps,
and goes back over n steps at a time (metarun/adjoint.py). The gradient is the same; memory grows with sqrt(T), not T.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from metarun.adjoint import checkpointed, segment_length
from metarun.algorithms import common
from metarun.algorithms.common import FastWeights
from metarun.errors import require
from metarun.inner import sgd
from metarun.linalg import axpy
from metarun.regularization import NO_REGULARIZATION, Regularization
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
    adapted: tuple[str, ...] | None = None
    regularization: Regularization = NO_REGULARIZATION
    inner_checkpoint: Any = False  # False, True, or the steps between two that are kept

    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    head: ClassVar[bool] = True

    def __post_init__(self) -> None:
        common.check_inner_loop(self.inner_lr, self.inner_steps, self.test_inner_steps)
        require(self.adapted is None or len(self.adapted) > 0, "adapted", [], "names nothing; null adapts everything")
        kept = self.inner_checkpoint
        require(
            isinstance(kept, int) and kept >= 0, "inner_checkpoint", kept, "choices: false, true, a number of steps"
        )
        needed = "must be false for a first-order gradient, which records no graph of the inner loop"
        require(not (kept and self.first_order), "inner_checkpoint", kept, needed)

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
            by_theta, by_phi, metrics = common.outer_gradients(self, params, phi, task)
            return axpy(1.0, by_theta, by_phi), metrics | {"distance": common.distance(phi, params)}
        if self.inner_checkpoint:
            return self._by_segments(params, task)

        def outer(theta: Params) -> tuple[Tensor, Metrics]:
            phi = self.adapt(theta, task.support).params
            objective, metrics = common.outer_objective(self, theta, phi, task)
            return objective, metrics | {"distance": common.distance(phi, theta)}

        return common.gradient(outer, params)

    def _by_segments(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        """The same gradient with less memory, and one more pass through the inner loop."""

        def problem(theta: Params) -> Objective:
            return self.inner_objective(theta, task.support)

        segment = segment_length(self.inner_checkpoint, self.inner_steps)
        phi, pullback = checkpointed(problem, params, self.inner_rule, self.inner_steps, segment)
        by_theta, by_phi, metrics = common.outer_gradients(self, params, phi, task)
        return axpy(1.0, by_theta, pullback(by_phi)), metrics | {"distance": common.distance(phi, params)}

    @property
    def sees_adaptation(self) -> bool:
        return not self.first_order

    @property
    def inner_rule(self) -> Rule:
        return common.proximal(sgd(self.inner_lr)._replace(moves=self.adapted), self.regularization)

    def inner_objective(self, params: Params, support: Batch) -> Objective:
        loss = common.batch_loss(self.model, self.loss, support)
        return common.regularized(self, params, support, loss)
