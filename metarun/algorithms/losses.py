"""Losses to differentiate and the metrics reported beside them, both means over rows.

A learner of a regression predicts values, or Gaussians: mean and standard deviation side by side, [M, 2 d_out].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.types import Algorithm, Kind, Loss, Metrics, PredictionKind


@dataclass(frozen=True)
class CrossEntropy:
    """-mean_m log softmax(logits_m)[y_m]; reported as accuracy in [0, 1]."""

    name: ClassVar[str] = "cross_entropy"
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    best: ClassVar[float] = 1.0
    signed: ClassVar[bool] = False

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
    best: ClassVar[float] = 0.0
    signed: ClassVar[bool] = False

    def __call__(self, prediction: Tensor, y: Tensor) -> Tensor:
        # Not `mse_loss`: its derivative inside `vmap` is a decomposition in Python, which also imports sympy.
        return (prediction - y).square().mean()

    def score(self, prediction: Tensor, y: Tensor) -> Tensor:
        return self(prediction, y)


@dataclass(frozen=True)
class GaussianLikelihood:
    """-mean_m log N(y_m; mu_m, diag sigma_m^2), the logarithm summed over output dimensions; reported with its sign
    changed, in nats a row. It has no best value; errors count from 0."""

    name: ClassVar[str] = "negative_log_likelihood"
    metric: ClassVar[str] = "log_likelihood"
    higher_is_better: ClassVar[bool] = True
    best: ClassVar[float] = 0.0
    signed: ClassVar[bool] = True

    def __call__(self, prediction: Tensor, y: Tensor) -> Tensor:
        return -self.score(prediction, y)

    def score(self, prediction: Tensor, y: Tensor) -> Tensor:
        mu, sigma = prediction.chunk(2, -1)
        return log_density(mu, sigma, y).mean()


@dataclass(frozen=True)
class FunctionLoss:
    """A function of the user's, (prediction, y) -> scalar, reported as it is; less is better."""

    function: Callable[[Tensor, Tensor], Tensor]

    higher_is_better: ClassVar[bool] = False
    best: ClassVar[float] = 0.0
    signed: ClassVar[bool] = True  # nothing is known of its range

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def metric(self) -> str:
        return self.name

    def __call__(self, prediction: Tensor, y: Tensor) -> Tensor:
        return self.function(prediction, y)

    def score(self, prediction: Tensor, y: Tensor) -> Tensor:
        return self.function(prediction, y)


@dataclass(frozen=True)
class Return:
    """The sum of a trajectory's rewards, reported as it is. It is measured by acting, not by comparing predictions."""

    name: ClassVar[str] = "negative_return"
    metric: ClassVar[str] = "return"
    higher_is_better: ClassVar[bool] = True
    best: ClassVar[float] = 0.0
    signed: ClassVar[bool] = False

    def __call__(self, prediction: Tensor, y: Tensor) -> Tensor:
        raise TypeError("a return is no function of predictions and targets")

    def score(self, prediction: Tensor, y: Tensor) -> Tensor:
        raise TypeError("a return is no function of predictions and targets")


def log_density(mu: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
    """log N(y; mu, diag sigma^2), summed over the last axis."""
    return -(0.5 * ((y - mu) / sigma) ** 2 + sigma.log() + 0.5 * math.log(2 * math.pi)).sum(-1)


def entropy(logits: Tensor) -> Tensor:
    """Mean over rows of H(softmax(logits)) in nats, logits [M, N]."""
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1).mean()


def as_prediction(loss: Loss, values: Tensor, deviation: Tensor) -> Tensor:
    """Values [..., d_out] and their standard deviations in the form that the loss takes as a prediction."""
    return torch.cat([values, deviation], -1) if isinstance(loss, GaussianLikelihood) else values


def loss_for(kind: Kind, predicts: PredictionKind = "values") -> Loss:
    """The loss for data of a kind; `predicts` is the learner's kind of prediction."""
    if kind == "classification":
        return CrossEntropy()
    if kind == "control":
        return Return()
    return GaussianLikelihood() if predicts == "gaussians" else MeanSquaredError()


def score_prediction(algorithm: Algorithm, prediction: Tensor, y: Tensor) -> tuple[Tensor, Metrics]:
    """The loss to differentiate, and the metrics that go with it."""
    loss = algorithm.loss(prediction, y)
    return loss, {"loss": loss, algorithm.loss.metric: algorithm.loss.score(prediction, y)}
