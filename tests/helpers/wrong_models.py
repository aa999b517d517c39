"""A right network, and wrong ones: each differs from it by one mistake that is easily made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from metarun.types import Params


@dataclass(frozen=True)
class Perceptron:
    """tanh(x W) V: nothing is wrong with it."""

    input_shape: tuple[int, ...]
    outputs: int | None

    features: ClassVar[int] = 6

    def init(self, seed: int) -> Params:
        generator = torch.Generator().manual_seed(seed)
        params = {"body.weight": torch.randn(self.input_shape[0], self.features, generator=generator)}
        if self.outputs is not None:
            params["head.weight"] = torch.randn(self.features, self.outputs, generator=generator)
        return params

    def hidden(self, params: Params, x: Tensor) -> Tensor:
        return torch.tanh(x @ params["body.weight"])

    def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
        z = self.hidden(params, x)
        return z if self.outputs is None else z @ params["head.weight"]

    def activations(self, params: Params, x: Tensor, stats: Any = None) -> dict[str, Tensor]:
        return {"features": self.hidden(params, x)}

    def query_stats(self, params: Params, support_x: Tensor) -> Any:
        return None

    def calibrate(self, params: Params, x: Tensor) -> Perceptron:
        return self


class NoActivations:
    features = 6

    def __init__(self, input_shape: tuple[int, ...], outputs: int | None) -> None:
        self.input_shape, self.outputs = input_shape, outputs

    init, hidden, apply = Perceptron.init, Perceptron.hidden, Perceptron.apply
    query_stats, calibrate = Perceptron.query_stats, Perceptron.calibrate


class Attached(Perceptron):
    def init(self, seed: int) -> Params:
        return {k: torch.nn.Parameter(v) for k, v in super().init(seed).items()}


class SetsSeed(Perceptron):
    def init(self, seed: int) -> Params:
        torch.manual_seed(seed)
        return {k: torch.randn(v.shape) for k, v in super().init(0).items()}


class OneSeed(Perceptron):
    def init(self, seed: int) -> Params:
        return super().init(0)


class Unseeded(Perceptron):
    def init(self, seed: int) -> Params:
        with torch.random.fork_rng():
            torch.seed()
            return {k: torch.randn(v.shape) for k, v in super().init(0).items()}


class OneAxisMore(Perceptron):
    def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
        return super().apply(params, x)[..., None]


class Single(Perceptron):
    def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
        return super().apply(params, x).float()


class OtherHead(Perceptron):
    def init(self, seed: int) -> Params:
        return {k.replace("head", "last"): v for k, v in super().init(seed).items()}

    def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
        return super().apply({k.replace("last", "head"): v for k, v in params.items()}, x)


class InputsAlone(Perceptron):
    def activations(self, params: Params, x: Tensor, stats: Any = None) -> dict[str, Tensor]:
        return {"inputs": x}


class InPlace(Perceptron):
    def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
        return super().apply(params, x.clamp_(min=0))


class Drops(Perceptron):
    def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
        return super().apply(params, torch.nn.functional.dropout(x))


class Branches(Perceptron):
    def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
        return super().apply(params, x if x.sum() > 0 else -x)


class Counts(Perceptron):
    calls: ClassVar[list[int]] = []

    def apply(self, params: Params, x: Tensor, stats: Any = None) -> Tensor:
        self.calls.append(1)
        return super().apply(params, x) * len(self.calls)


class Detaches(Perceptron):
    def hidden(self, params: Params, x: Tensor) -> Tensor:
        z = x @ params["body.weight"]
        return z * z.sigmoid().detach()


class MixesRows(Perceptron):
    def hidden(self, params: Params, x: Tensor) -> Tensor:
        z = super().hidden(params, x)
        return z - z.mean(0)
