r"""MAML, FOMAML (Finn, Abbeel, Levine 2017, arXiv 1703.03400) and what ANIL, Meta-SGD and MAML++ change in it.

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

`learned_rates` makes alpha a meta-parameter, which starts as `inner_lr`: for every weight (`weight`: Meta-SGD, Li,
Zhou, Chen, Li 2017, arXiv 1707.09835, phi_{k+1} = phi_k - alpha * grad, elementwise), or for every tensor at every step
(`step`: MAML++, Antoniou, Edwards, Storkey 2019, arXiv 1810.09502). Beyond `inner_steps` the last step's rates hold.
With `first_order` the rates keep their exact gradient, where each grad L^S(phi_k) is taken for a constant.

`step_weights` w makes the outer loss sum_k w_k L^Q(phi_k), k = 1 .. T (MAML++); with `multi_step_until` = E
the earlier ones go, in ten stages over E outer steps, from 1/T each to the last step alone. `first_order_until`
takes the first-order gradient in the outer steps before it (derivative-order annealing).

`inner_checkpoint` is for the second-order gradient: it keeps phi at every n-th step instead of the graph of all steps,
and goes back over n steps at a time (inner_checkpointing.py). The gradient is the same; memory grows with sqrt(T), not
T.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from metarun.algorithms import common, multistep
from metarun.algorithms.common import FastWeights
from metarun.algorithms.inner_checkpointing import checkpointed, segment_length
from metarun.algorithms.inner_loop import initial_rates, is_adapted, learned_rates_rule, sgd
from metarun.algorithms.multistep import Stage
from metarun.algorithms.objective import NO_REGULARIZATION, Regularization
from metarun.compute.linalg import axpy
from metarun.errors import require
from metarun.types import Batch, Kind, Loss, Metrics, Model, Objective, Params, Task, UpdateRule

LEARNED_RATES = ("none", "weight", "step")


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
    learned_rates: str = "none"
    step_weights: tuple[float, ...] | None = None  # None: the last step's loss alone
    multi_step_until: int = 0
    first_order_until: int = 0

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
        choices = "choices: " + ", ".join(LEARNED_RATES)
        require(self.learned_rates in LEARNED_RATES, "learned_rates", self.learned_rates, choices)
        multistep.check(self.step_weights, self.inner_steps, self.multi_step_until, self.first_order_until)
        staged = kept and (self.multi_step_until or self.step_weights or self.first_order_until)
        require(not staged, "inner_checkpoint", kept, "goes with the loss after the last step, second order throughout")

    def init(self, seed: int) -> Params:
        weights = self.model.init(seed)
        if self.learned_rates == "none":
            return weights
        adapted = {name: w for name, w in weights.items() if is_adapted(name, self.inner_rule)}
        return weights | initial_rates(
            adapted, self.inner_lr, self.inner_steps if self.learned_rates == "step" else None
        )

    def adapt(self, params: Params, support: Batch) -> FastWeights:
        return common.adapt(self, params, support)

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[FastWeights]:
        return common.adaptations(self, params, support, steps)

    def predict(self, adapted: FastWeights, x: Tensor) -> Tensor:
        return self.model.apply(adapted.params, x, adapted.stats)

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        if self.step_weights or (self.first_order and self.learned_rates != "none"):
            return multistep.meta_grad(self, params, task)
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

    def stage(self, step: int) -> Stage:
        weights = multistep.annealed(step, self.multi_step_until, self.inner_steps)
        return Stage(step < self.first_order_until, weights)

    def at(self, stage: Stage) -> MAML:
        weights = stage.weights or self.step_weights
        first_order = self.first_order or stage.first_order
        return replace(self, first_order=first_order, step_weights=weights, multi_step_until=0, first_order_until=0)

    @property
    def sees_adaptation(self) -> bool:
        return not self.first_order

    @property
    def inner_rule(self) -> UpdateRule:
        rule = (
            sgd(self.inner_lr)
            if self.learned_rates == "none"
            else learned_rates_rule(by_step=self.learned_rates == "step")
        )
        return common.proximal(rule._replace(adapted=self.adapted), self.regularization)

    def inner_objective(self, params: Params, support: Batch) -> Objective:
        loss = common.batch_loss(self.model, self.loss, support)
        return common.regularized(self, params, support, loss)
