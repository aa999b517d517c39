r"""ProtoMAML: MAML from the head of a prototypical network (Triantafillou et al. 2020, arXiv 1903.03096).

    c_n = (1/K) sum_{(x, y) in S, y = n} f(x; theta)
    phi_0 = S(theta) = theta with the head's weights w_n = 2 c_n and biases b_n = -|c_n|^2
    phi_{k+1} = phi_k - alpha grad L^S(phi_k),   k = 0 .. T-1
    meta-gradient  g = (dS/dtheta)^T g',   g' the meta-gradient of MAML at S(theta)

Symbols: f the network before its head, [S, D] on the support set; c_n, w_n [D]; alpha, T, L^S and the rest as in
maml.py. w_n . f(x) + b_n = -|f(x) - c_n|^2 + |f(x)|^2, and the last term is the same for all classes: before its first
step it predicts as a prototypical network does. The prototypes are those of theta: the steps move the head that they
make, and the gradient flows back through them (with `first_order` too, which is of the steps alone). The head of theta
is 0, and is not trained; it fits any number of classes, and no class differs from the others before it is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor
from torch.func import vjp

from metarun.algorithms import inner_loop
from metarun.algorithms.differentiation import (
    Checkpointed,
    Differentiation,
    FirstOrder,
    Unrolled,
    check_checkpointing,
    segment_length,
)
from metarun.algorithms.embeddings import class_means
from metarun.algorithms.inner_loop import FastWeights
from metarun.algorithms.objective import NO_REGULARIZATION, Regularization
from metarun.errors import UserError
from metarun.types import HEAD, Batch, Kind, Loss, Metrics, Model, Objective, Params, Task, UpdateRule

WEIGHT, BIAS = HEAD + "weight", HEAD + "bias"


@dataclass(frozen=True)
class ProtoMAML:
    """Descend from the nearest class mean: learn the features that it and its steps use."""

    model: Model
    loss: Loss
    inner_lr: float
    inner_steps: int
    test_inner_steps: int
    first_order: bool
    regularization: Regularization = NO_REGULARIZATION
    inner_checkpoint: Any = False  # as MAML's
    started: bool = False  # the parameters are S(theta) already

    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    head: ClassVar[bool] = True
    zero_head: ClassVar[bool] = True

    def __post_init__(self) -> None:
        inner_loop.check_inner_loop(self.inner_lr, self.inner_steps, self.test_inner_steps)
        check_checkpointing(self.inner_checkpoint, self.first_order)

    @property
    def approximation(self) -> str | None:
        return "first-order meta-gradient" if self.first_order else None

    def init(self, seed: int) -> Params:
        params = inner_loop.init_weights(self.model, seed, zero_head=True)
        shapes = {name: value.ndim for name, value in params.items() if name.startswith(HEAD)}
        if shapes != {WEIGHT: 2, BIAS: 1}:
            found = ", ".join(shapes) or "none"
            raise UserError(
                f"algo=protomaml: needs a network whose head has a weight [N, D] and a bias [N]; has {found}"
            )
        return params

    def rescale(self, ratio: float) -> ProtoMAML:
        """As MAML's: each class weighs 1 / N in a mean loss over N classes."""
        return replace(self, inner_lr=self.inner_lr * ratio)

    def start(self, params: Params, support: Batch) -> Params:
        """S(theta)."""
        if self.started:
            return params
        *_, z_SD = self.model.activations(params, support.x).values()
        centre_ND = class_means(z_SD, support.y, len(params[BIAS]))
        return params | {WEIGHT: 2 * centre_ND, BIAS: -centre_ND.square().sum(1)}

    def adapt(self, params: Params, support: Batch) -> FastWeights:
        return inner_loop.adapt(self, params, support)

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[FastWeights]:
        return inner_loop.adaptations(self, params, support, steps)

    def predict(self, adapted: FastWeights, x: Tensor) -> Tensor:
        return self.model.apply(adapted.params, x, adapted.stats)

    @property
    def differentiation(self) -> Differentiation:
        """How the gradient goes through the steps from S(theta)."""
        if self.inner_checkpoint:
            return Checkpointed(segment_length(self.inner_checkpoint, self.inner_steps))
        return FirstOrder() if self.first_order else Unrolled()

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        first, pull_back = vjp(lambda theta: self.start(theta, task.support), params)[:2]
        gradient, metrics = self.differentiation.meta_grad(replace(self, started=True), first, task)
        return pull_back(gradient)[0], metrics

    @property
    def sees_adaptation(self) -> bool:
        return not self.first_order

    @property
    def inner_rule(self) -> UpdateRule:
        return inner_loop.add_proximal_step(inner_loop.sgd(self.inner_lr), self.regularization)

    def inner_objective(self, params: Params, support: Batch) -> Objective:
        loss = inner_loop.bind_loss(self.model, self.loss, support)
        first = self.start(params, support) if self.regularization.terms else params
        return inner_loop.add_inner_penalties(self, first, support, loss)
