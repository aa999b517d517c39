"""A right algorithm, and wrong ones: each differs from it by one mistake that is easily made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from metarun.algorithms import losses
from metarun.compute import linalg
from metarun.types import Batch, Kind, Loss, Metrics, Model, Params, Task


@dataclass(frozen=True)
class Ridge:
    """Ridge regression on the network's features: nothing is wrong with it."""

    model: Model
    loss: Loss
    strength: float = 0.1

    kinds: ClassVar[tuple[Kind, ...]] = ("regression",)
    head: ClassVar[bool] = False
    test_inner_steps: ClassVar[int] = 0

    def init(self, seed: int) -> Params:
        return self.model.init(seed)

    def adapt(self, params: Params, support: Batch) -> Any:
        z_SD = self.model.apply(params, support.x)
        gram_DD = z_SD.T @ z_SD + self.strength * torch.eye(z_SD.shape[1]).to(z_SD)
        stats = self.model.query_stats(params, support.x)
        return params, stats, torch.linalg.solve(gram_DD, z_SD.T @ support.y)

    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Any]:
        yield self.adapt(params, support)

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        params, stats, w_DO = adapted
        return self.model.apply(params, x, stats) @ w_DO

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        def outer(theta: Params) -> tuple[Tensor, Metrics]:
            prediction = self.predict(self.adapt(theta, task.support), task.query.x)
            return losses.score_prediction(self, prediction, task.query.y)

        return linalg.differentiate(outer, params)


class Without:
    """A class without a member that the other has."""

    def __init__(self, model: Model, loss: Loss) -> None:
        self.model, self.loss = model, loss

    init, adapt, adaptations, predict, meta_grad = (
        *(Ridge.init, Ridge.adapt, Ridge.adaptations),
        *(Ridge.predict, Ridge.meta_grad),
    )


class NoKinds(Without):
    head, test_inner_steps, strength = False, 0, 0.1


class NoHead(Without):
    kinds, test_inner_steps, strength = ("regression",), 0, 0.1


class NoTestSteps(Without):
    kinds, head, strength = ("regression",), False, 0.1


def unannotated(model, loss):  # type: ignore[no-untyped-def]
    return Ridge(model, loss)


class Branches(Ridge):
    def adapt(self, params: Params, support: Batch) -> Any:
        if support.x.sum() > 0:
            support = support._replace(y=-support.y)
        return super().adapt(params, support)


class WrongShape(Ridge):
    def adapt(self, params: Params, support: Batch) -> Any:
        params, stats, w_DO = super().adapt(params, support)
        return params, stats, w_DO @ support.x


class TakesNumber(Ridge):
    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        gradient, metrics = super().meta_grad(params, task)
        return gradient, metrics | {"half": metrics["loss"].new_tensor(metrics["loss"].item() / 2)}


# ---------------------------------------------------------------- what metarun.testing must find


class NoDataclass:
    kinds, head, test_inner_steps, strength = ("regression",), False, 0, 0.1

    def __init__(self, model: Model, loss: Loss) -> None:
        self.model, self.loss = model, loss

    init, adapt, adaptations, predict, meta_grad = (
        *(Ridge.init, Ridge.adapt, Ridge.adaptations),
        *(Ridge.predict, Ridge.meta_grad),
    )


class KindIsText(Ridge):
    kinds: ClassVar[Any] = "regression"


class AttachedInit(Ridge):
    def init(self, seed: int) -> Params:
        return {k: torch.nn.Parameter(v) for k, v in super().init(seed).items()}


class GlobalSeed(Ridge):
    def init(self, seed: int) -> Params:
        return {k: v + 0.1 * torch.randn(v.shape) for k, v in super().init(seed).items()}


class OneSeed(Ridge):
    def init(self, seed: int) -> Params:
        return super().init(0)


class SetsSeed(Ridge):
    def init(self, seed: int) -> Params:
        torch.manual_seed(seed)
        return {k: v + 0.1 * torch.randn(v.shape) for k, v in super().init(0).items()}


class ChangesSupport(Ridge):
    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Any]:
        support.x.mul_(0.5)
        return super().adaptations(params, support, steps)


class ChangesUnderGrad(Ridge):
    def adapt(self, params: Params, support: Batch) -> Any:
        support.x.mul_(0.5)
        return super().adapt(params, support)


class AttachedStates(Ridge):
    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Any]:
        params, stats, w_DO = self.adapt(params, support)
        yield params, stats, w_DO.requires_grad_()


class LeavesOut(Ridge):
    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        gradient, metrics = super().meta_grad(params, task)
        return {k: g for k, g in gradient.items() if "shift" not in k}, metrics


class NoLoss(Ridge):
    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        gradient, metrics = super().meta_grad(params, task)
        return gradient, {"mse": metrics["mse"]}


class GradientAlone(Ridge):
    def meta_grad(self, params: Params, task: Task) -> Any:
        return super().meta_grad(params, task)[0]


class LongMetric(Ridge):
    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        gradient, metrics = super().meta_grad(params, task)
        return gradient, metrics | {"targets": task.query.y[:, 0]}


class NoGradient(Ridge):
    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        gradient, metrics = super().meta_grad(params, task)
        return {k: 0 * g for k, g in gradient.items()}, metrics


class Counts(Ridge):
    """Its second call is not its first."""

    calls: ClassVar[list[int]] = []

    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        self.calls.append(1)
        gradient, metrics = super().meta_grad(params, task)
        return {k: g * len(self.calls) for k, g in gradient.items()}, metrics


class TwoStates(Ridge):
    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Any]:
        yield self.adapt(params, support)
        yield self.adapt(params, support)


class OtherState(Ridge):
    def adaptations(self, params: Params, support: Batch, steps: int) -> Iterator[Any]:
        params, stats, w_DO = self.adapt(params, support)
        yield params, stats, 2 * w_DO


class FlatPrediction(Ridge):
    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        return super().meta_grad(params, task._replace(query=Batch(task.query.x, task.query.y[:, 0])))

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return super().predict(adapted, x)[:, 0]


class NotFinite(Ridge):
    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return super().predict(adapted, x) / (x - x)


class ByPosition(Ridge):
    def adapt(self, params: Params, support: Batch) -> Any:
        age = torch.arange(1, len(support.y) + 1).to(support.y)[:, None]
        return super().adapt(params, support._replace(y=support.y / age))


class SeesQueries(Ridge):
    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        found = super().predict(adapted, x)
        return found - found.mean(0)


class IgnoresStatistics(Ridge):
    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        params, _, w_DO = adapted
        return self.model.apply(params, x) @ w_DO


class Single(Ridge):
    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return super().predict(adapted, x).float().to(x)


class Doubles(Ridge):
    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        gradient, metrics = super().meta_grad(params, task)
        return {k: g.double() for k, g in gradient.items()}, metrics


class Detaches(Ridge):
    def adapt(self, params: Params, support: Batch) -> Any:
        theta, stats, w_DO = super().adapt(params, support)
        return theta, stats, w_DO.detach()


class Ascends(Ridge):
    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        gradient, metrics = super().meta_grad(params, task)
        return {k: -g for k, g in gradient.items()}, metrics
