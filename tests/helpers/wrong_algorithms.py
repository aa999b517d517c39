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


class TakesNumber(Ridge):
    def meta_grad(self, params: Params, task: Task) -> tuple[Params, Metrics]:
        gradient, metrics = super().meta_grad(params, task)
        return gradient, metrics | {"half": metrics["loss"].new_tensor(metrics["loss"].item() / 2)}
