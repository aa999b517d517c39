"""R2-D2 (Bertinetto, Henriques, Torr, Vedaldi 2019, arXiv 1805.08136): a ridge regression on learned features.

    W = Z' (Z Z' + lam I)^{-1} Y;    logits = a f(x) W + b

Z [S, D] are the features of the support set, Y [S, N] its labels as one-hot rows; lam, a and b are learned.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from metarun.algorithms import losses
from metarun.compute import linalg
from metarun.types import Loss, Model


@dataclass(frozen=True)
class R2D2:
    model: Model
    loss: Loss
    ways: int
    strength: float = 1.0

    kinds: ClassVar[tuple[str, ...]] = ("classification",)
    head: ClassVar[bool] = False
    test_inner_steps: ClassVar[int] = 0

    def init(self, seed):
        own = {"log_strength": torch.tensor(self.strength).log(), "scale": torch.tensor(10.0), "shift": torch.zeros(())}
        return self.model.init(seed) | {f"learned.{name}": value for name, value in own.items()}

    def adapt(self, params, support):
        z = self.model.apply(params, support.x)
        y = (support.y[:, None] == torch.arange(self.ways, device=z.device)).to(z.dtype)
        kernel = z @ z.T + params["learned.log_strength"].exp() * torch.eye(len(z)).to(z)
        return params, self.model.query_stats(params, support.x), z.T @ torch.linalg.solve(kernel, y)

    def adaptations(self, params, support, steps):
        yield self.adapt(params, support)

    def predict(self, adapted, x):
        params, stats, w = adapted
        return params["learned.scale"] * self.model.apply(params, x, stats) @ w + params["learned.shift"]

    def meta_grad(self, params, task):
        def outer(theta):
            prediction = self.predict(self.adapt(theta, task.support), task.query.x)
            return losses.score_prediction(self, prediction, task.query.y)

        return linalg.differentiate(outer, params)
