r"""MAML, FOMAML (Finn, Abbeel, Levine 2017, arXiv 1703.03400) and what ANIL, Meta-SGD and MAML++ change in it.

    phi_0 = theta;   phi_{k+1} = phi_k - alpha grad L^S(phi_k),   k = 0 .. T-1
    meta-gradient  g = d/dtheta L^Q(phi_T(theta))
                     = [prod_k (I - alpha H^S(phi_k))] grad L^Q(phi_T)      (leftmost factor k = 0)
    FOMAML         g = grad L^Q(phi_T)

Symbols: alpha `inner_lr`, T `inner_steps` (at test `test_inner_steps`), L^S and L^Q the *mean* losses of
support and query set, H^S the Hessian of L^S. The released MAML code sums its classification loss over
ways: its rate a on N ways is N a here (0.4 on 5-way Omniglot is 2.0). How g is taken is chosen by
`MAML.differentiation`, with the formulas in differentiation.py.

`adapted` lists the name prefixes of the adapted parameters: ["head"] is ANIL (Raghu, Raghu, Bengio, Vinyals
2020, arXiv 1909.09157). A minus leaves parameters out: ["-head"], all but the head, is BOIL (Oh, Yoo, Kim, Yun 2021,
arXiv 2008.08882). null adapts everything. FOMAML takes a penalty Omega(theta, phi) of the outer objective by both
partial derivatives, as if phi were theta plus a constant.

`learned_rates` makes alpha a meta-parameter, which starts as `inner_lr`: for every weight (`weight`: Meta-SGD, Li,
Zhou, Chen, Li 2017, arXiv 1707.09835, phi_{k+1} = phi_k - alpha * grad, elementwise), or for every tensor at every step
(`step`: MAML++, Antoniou, Edwards, Storkey 2019, arXiv 1810.09502). Beyond `inner_steps` the last step's rates hold.
`curvature` keeps alpha and learns a linear map of the gradient (Meta-Curvature: meta_curvature.py). With `first_order`
the rates keep their exact gradient, where each grad L^S(phi_k) is taken for a constant.

`step_weights` w makes the outer loss sum_k w_k L^Q(phi_k), k = 1 .. T (MAML++). `multi_step_until` = E anneals w over E
outer steps, in stages e = 0 .. 9 of E/10 steps, to the last step alone:

    w_k = max(1/T - e / (10 T), 0.03/T) for k < T,    w_T = 1 - sum_{k < T} w_k;    after E: w_T = 1 alone

`first_order_until` takes the first-order gradient in the outer steps before it (derivative-order annealing).
`inner_checkpoint` saves memory with the second-order gradient: it grows with sqrt(T), not T. The gradient is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from metarun.algorithms import inner_loop
from metarun.algorithms.differentiation import (
    Checkpointed,
    Differentiation,
    FirstOrder,
    MultiStep,
    Unrolled,
    check_checkpointing,
    segment_length,
)
from metarun.algorithms.inner_loop import FastWeights, init_rates, learned_rates_rule, sgd, split_adapted
from metarun.algorithms.meta_curvature import curvature_rule, init_curvature
from metarun.algorithms.objective import NO_REGULARIZATION, Entry, Regularization
from metarun.errors import require
from metarun.types import Batch, Kind, Loss, Metrics, Model, Objective, Params, Task, UpdateRule

LEARNED_RATES = ("none", "weight", "step", "curvature")
ANNEALING_STAGES = 10
LEAST_WEIGHT = 0.03
"""Times 1/T: the least weight of an earlier step before it becomes 0."""


class Stage(NamedTuple):
    """The part of the settings that changes during training."""

    first_order: bool
    step_weights: tuple[float, ...] | None  # None: no annealing, or it is over


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
    inner_checkpoint: Any = False  # False, True, or the steps between two kept states
    learned_rates: str = "none"
    step_weights: tuple[float, ...] | None = None  # None: the last step's loss alone
    multi_step_until: int = 0
    first_order_until: int = 0
    zero_head: bool = False
    ratio: float = 1.0  # of learned rates: the classes of a task over those of a training task

    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    head: ClassVar[bool] = True

    def __post_init__(self) -> None:
        inner_loop.check_inner_loop(
            self.inner_lr, self.inner_steps, self.test_inner_steps, self.adapted, self.zero_head
        )
        kept = self.inner_checkpoint
        check_checkpointing(kept, self.first_order)
        choices = "choices: " + ", ".join(LEARNED_RATES)
        require(self.learned_rates in LEARNED_RATES, "learned_rates", self.learned_rates, choices)
        for name in ("multi_step_until", "first_order_until"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be at least 0 outer steps")
        w = self.step_weights
        if w is not None:
            needed = f"must be one finite number of at least 0 for each of the {self.inner_steps} inner steps, "
            sound = len(w) == self.inner_steps and all(math.isfinite(v) and v >= 0 for v in w) and w[-1] > 0
            require(sound, "step_weights", list(w), needed + "the last above 0")
            needed = "cannot be set together with multi_step_until, which sets them"
            require(not self.multi_step_until, "step_weights", list(w), needed)
        proximal = self.learned_rates == "curvature" and self.regularization.select(Entry.INNER_STEP)
        needed = "has no proximal steps in the metric of its matrices; choices: reg.where=outer, reg.method=subgradient"
        require(not proximal, "learned_rates", "curvature", needed)
        staged = kept and (self.multi_step_until or w or self.first_order_until)
        require(
            not staged, "inner_checkpoint", kept, "needs the loss after the last step alone, second order throughout"
        )

    @property
    def approximation(self) -> str | None:
        return "first-order meta-gradient" if self.first_order else None

    def init(self, seed: int) -> Params:
        weights = inner_loop.init_weights(self.model, seed, self.zero_head)
        if self.learned_rates == "none":
            return weights
        adapted = split_adapted(weights, self.inner_rule)[0]
        if self.learned_rates == "curvature":
            return weights | init_curvature(adapted, self.zero_head)
        steps = self.inner_steps if self.learned_rates == "step" else None
        return weights | init_rates(adapted, self.inner_lr, steps, self.zero_head)

    def rescale(self, ratio: float) -> MAML:
        """The learner whose inner step does to each class what this one's does, for `ratio` times as many classes.

        Each class weighs 1 / N in a mean loss over N classes, so the rate grows with N.
        """
        learned = self.learned_rates in ("weight", "step")
        return replace(self, ratio=ratio) if learned else replace(self, inner_lr=self.inner_lr * ratio)

    def adapt(self, params: Params, support: Batch) -> FastWeights:
        return inner_loop.adapt(self, params, support)

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[FastWeights]:
        return inner_loop.adaptations(self, params, support, steps)

    def predict(self, adapted: FastWeights, x: Tensor) -> Tensor:
        return self.model.apply(adapted.params, x, adapted.stats)

    @property
    def differentiation(self) -> Differentiation:
        """How the meta-gradient goes through the inner loop."""
        if self.step_weights or (self.first_order and self.learned_rates != "none"):
            last_alone = (*[0.0] * (self.inner_steps - 1), 1.0)
            return MultiStep(self.step_weights or last_alone, self.first_order)
        if self.first_order:
            return FirstOrder()
        if self.inner_checkpoint:
            return Checkpointed(segment_length(self.inner_checkpoint, self.inner_steps))
        return Unrolled()

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        return self.differentiation.meta_grad(self, params, task)

    def stage(self, step: int) -> Stage:
        weights = anneal_weights(step, self.multi_step_until, self.inner_steps)
        return Stage(step < self.first_order_until, weights)

    def at(self, stage: Stage) -> MAML:
        weights = stage.step_weights or self.step_weights
        first_order = self.first_order or stage.first_order
        return replace(self, first_order=first_order, step_weights=weights, multi_step_until=0, first_order_until=0)

    @property
    def sees_adaptation(self) -> bool:
        return not self.first_order

    @property
    def inner_rule(self) -> UpdateRule:
        rules = {"none": sgd, "curvature": curvature_rule}
        make = rules.get(self.learned_rates)
        rule = make(self.inner_lr) if make else learned_rates_rule(self.learned_rates == "step", self.ratio)
        return inner_loop.add_proximal_step(rule._replace(adapted=self.adapted), self.regularization)

    def inner_objective(self, params: Params, support: Batch) -> Objective:
        loss = inner_loop.bind_loss(self.model, self.loss, support)
        return inner_loop.add_inner_penalties(self, params, support, loss)


def anneal_weights(step: int, until: int, inner_steps: int) -> tuple[float, ...] | None:
    """The weights w of the inner steps' losses at an outer step, None from step `until` on."""
    if step >= until:
        return None
    stage = ANNEALING_STAGES * step // until
    earlier = max((1 - stage / ANNEALING_STAGES) / inner_steps, LEAST_WEIGHT / inner_steps)
    return (*[earlier] * (inner_steps - 1), 1 - earlier * (inner_steps - 1))
