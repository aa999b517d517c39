r"""R2-D2, ridge regression on learned features in closed form (Bertinetto, Henriques, Torr, Vedaldi 2019,
arXiv 1805.08136).

    W = argmin_W |Z W - Y|^2 + lambda |W|^2 = (Z' Z + lambda I_D)^{-1} Z' Y
                                            = Z' (Z Z' + lambda I_S)^{-1} Y          (Woodbury; solved where S < D)
    prediction = a f(x) W + b;    lambda = exp(l)

Symbols: f the network without its head; Z [S, D] the features of the support set, Y [S, N] its one-hot labels or
[S, d_out] its targets; the meta-parameters l, a, b are scalars, `learned.log_lambda`, `learned.scale`, `learned.bias`,
and start as log `ridge`, `scale` and 0. Of classes the predictions are logits: a is the inverse of their temperature,
and b, the same for all classes, has no effect on a softmax. Of a regression a is 1.
Training may use more ways than testing (`algo.train_ways`).
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

LOG_LAMBDA, SCALE, BIAS = (LEARNED + name for name in ("log_lambda", "scale", "bias"))


class RidgeHead(NamedTuple):
    params: Params
    stats: Any  # that queries are normalised with
    weights: Tensor  # a W [D, N], or W [D, d_out]


@dataclass(frozen=True)
class R2D2:
    """Fit a linear head to the support set by ridge regression, and learn the features that it fits."""

    model: Model
    loss: Loss
    outputs: int
    ridge: float
    scale: float

    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    head: ClassVar[bool] = False
    test_inner_steps: ClassVar[int] = 0

    def __post_init__(self) -> None:
        require(0 < self.ridge < math.inf, "ridge", self.ridge, "must be above 0 and finite (the first lambda)")
        require(0 < self.scale < math.inf, "scale", self.scale, "must be above 0 and finite")

    def init(self, seed: int) -> Params:
        first = {LOG_LAMBDA: math.log(self.ridge), SCALE: self.scale, BIAS: 0.0}
        return self.model.init(seed) | {name: torch.tensor(value) for name, value in first.items()}

    def adapt(self, params: Params, support: Batch) -> RidgeHead:
        w_DN = self._fit(params, self.model.apply(params, support.x), support.y)
        return RidgeHead(params, self.model.query_stats(params, support.x), w_DN)

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[RidgeHead]:
        yield self.adapt(params, support)

    def predict(self, adapted: RidgeHead, x: Tensor) -> Tensor:
        return self.model.apply(adapted.params, x, adapted.stats) @ adapted.weights + adapted.params[BIAS]

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        def outer(params: Params) -> tuple[Tensor, Metrics]:
            z_SD, z_MD = embed_episode(self.model, params, task)
            prediction = z_MD @ self._fit(params, z_SD, task.support.y) + params[BIAS]
            return losses.score_prediction(self, prediction, task.query.y)

        return linalg.differentiate(outer, params)

    def _fit(self, params: Params, z_SD: Tensor, y: Tensor) -> Tensor:
        strength = params[LOG_LAMBDA].exp()
        if y.is_floating_point():
            return ridge_regression(z_SD, y, strength)
        return params[SCALE] * ridge_regression(z_SD, one_hot(y, self.outputs, like=z_SD), strength)


def ridge_regression(z_SD: Tensor, y_SN: Tensor, strength: Tensor) -> Tensor:
    """argmin_W |Z W - Y|^2 + strength |W|^2, [D, N], by the smaller of two systems, of S or of D unknowns."""
    rows, features = z_SD.shape
    identity = torch.eye(min(rows, features), dtype=z_SD.dtype, device=z_SD.device)
    if rows < features:
        return z_SD.T @ torch.linalg.solve(z_SD @ z_SD.T + strength * identity, y_SN)
    return torch.linalg.solve(z_SD.T @ z_SD + strength * identity, z_SD.T @ y_SN)
