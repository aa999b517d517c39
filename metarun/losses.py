"""What predictions are scored by: a loss to differentiate and a figure to report, both means over rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from metarun.types import Kind, Loss


@dataclass(frozen=True)
class CrossEntropy:
    """-mean_m log softmax(logits_m)[y_m]; reported as accuracy in [0, 1]."""

    name: ClassVar[str] = "cross_entropy"
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __call__(self, prediction: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(prediction, y)

    def score(self, prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction.argmax(-1) == y).to(prediction.dtype).mean()


@dataclass(frozen=True)
class MeanSquaredError:
    """mean_m |f(x_m) - y_m|^2, the mean also taken over output dimensions; reported as it is."""

    name: ClassVar[str] = "mse"
    metric: ClassVar[str] = "mse"
    higher_is_better: ClassVar[bool] = False

    def __call__(self, prediction: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(prediction, y)

    def score(self, prediction: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(prediction, y)


def loss_for(kind: Kind) -> Loss:
    return CrossEntropy() if kind == "classification" else MeanSquaredError()
