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

from metarun.algorithms.embeddings import one_hot
from metarun.algorithms.inner_loop import FastWeights
from metarun.algorithms.maml import MAML
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
    inner_checkpoint: Any = False

    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    head: ClassVar[bool] = True
    zero_head: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _ = self.steps  # refuses settings out of range

    @property
    def steps(self) -> MAML:
        """The descent from S(theta)."""
        rates = self.inner_lr, self.inner_steps, self.test_inner_steps, self.first_order
        more = {"regularization": self.regularization, "inner_checkpoint": self.inner_checkpoint, "zero_head": True}
        return MAML(self.model, self.loss, *rates, **more)

    @property
    def approximation(self) -> str | None:
        return self.steps.approximation

    def init(self, seed: int) -> Params:
        params = self.steps.init(seed)
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
        *_, z_SD = self.model.activations(params, support.x).values()
        members_NS = one_hot(support.y, len(params[BIAS]), like=z_SD).T
        centre_ND = members_NS @ z_SD / members_NS.sum(1, keepdim=True)
        return params | {WEIGHT: 2 * centre_ND, BIAS: -centre_ND.square().sum(1)}

    def adapt(self, params: Params, support: Batch) -> FastWeights:
        return self.steps.adapt(self.start(params, support), support)

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[FastWeights]:
        return self.steps.adaptations(self.start(params, support), support, steps)

    def predict(self, adapted: FastWeights, x: Tensor) -> Tensor:
        return self.steps.predict(adapted, x)

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        start, pull_back = vjp(lambda theta: self.start(theta, task.support), params)
        gradient, metrics = self.steps.meta_grad(start, task)
        return pull_back(gradient)[0], metrics

    @property
    def sees_adaptation(self) -> bool:
        return self.steps.sees_adaptation

    @property
    def inner_rule(self) -> UpdateRule:
        return self.steps.inner_rule

    def inner_objective(self, params: Params, support: Batch) -> Objective:
        return self.steps.inner_objective(self.start(params, support), support)
