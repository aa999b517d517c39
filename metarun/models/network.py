"""A network as a frozen value: blocks of (linear map, normalisation, pooling, activation), a readout, perhaps a head.

`conv4.py` and `mlp.py` are functions that fill one in. Weights are passed to every call, so that `vmap` can give each
task its own.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.functional import linear, relu
from torch.nn.init import trunc_normal_, xavier_uniform_
from torch.utils._pytree import tree_map

from metarun.errors import require
from metarun.models import norm as norms
from metarun.models.noise import Bottleneck, sigma
from metarun.models.norm import Moments
from metarun.types import Params

Outputs = TypeVar("Outputs")
Stats = tuple[Moments, ...] | Tensor
"""The moments of each block's normalisation, first to last; with norm=joined the rows that each row is joined with."""


def pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, K, ...], weight [O, ...] of K numbers a row -> [B, O, ...], a matrix product at every pixel."""
    # Not by `linear`, whose gradient of the weight is G^T X: with few columns in X it takes ten times as long as X^T G.
    return (x.movedim(1, -1) @ weight.flatten(1).T.contiguous()).movedim(-1, 1)


def identity(h: Tensor) -> Tensor:
    return h


def flatten(h: Tensor) -> Tensor:
    """[B, ...] -> [B, D]."""
    return h.flatten(1)


AXES = {"images": 3, "signals": 2}
"""The axes of one row: [C, H, W], [C, L]."""


def require_inputs(name: str, input_shape: tuple[int, ...], kind: str) -> None:
    """Raise `SettingError` unless the inputs are of this kind."""
    got = f"needs {kind}, and the data set has inputs of shape {list(input_shape)}; try model=mlp"
    require(len(input_shape) == AXES[kind], "_target_", name, got)


def apply_row_by_row(network: Callable[[Tensor], Outputs], x: Tensor, others: Tensor) -> Outputs:
    """The network's output for each row of x [B, ...], each in a batch of the other rows and itself."""
    batches = torch.cat([others.expand(x.shape[0], *others.shape), x[:, None]], 1)
    return tree_map(lambda h: h[:, -1], vmap(network)(batches))


@dataclass(frozen=True)
class Network:
    shapes: tuple[tuple[int, ...], ...]  # of the blocks' weights; the first axis is the output channel
    linear: Callable[[Tensor, Tensor], Tensor]  # x, weight -> the linear part of a block
    prepare: Callable[[Tensor], Tensor]  # the input
    after: Callable[[Tensor], Tensor]  # the normalisation, before the activation
    readout: Callable[[Tensor], Tensor]  # the last feature map -> [B, D]
    features: int  # D
    outputs: int | None  # of the head; None: the network ends in its features
    norm: str
    followed: int | None = None  # the first blocks, whose normalisation `after` follows; None: all
    fixed: tuple[Moments, ...] | None = None  # population statistics, once measured
    product: Callable[[Tensor, Tensor], Tensor] | None = None  # the first block's linear part, where it is `pointwise`
    matmul_only: bool = True  # `linear` is a matrix product, also on a CPU
    activation: Callable[[Tensor], Tensor] = relu
    linear_blocks: tuple[int, ...] = ()  # those without an activation
    bottleneck: Bottleneck | None = None  # a block whose output may be noisy
    init_std: float | None = None  # of the first weights; None: Xavier-uniform

    def __post_init__(self) -> None:
        norms.check_norm(self.norm)

    def init(self, seed: int) -> Params:
        """Xavier-uniform weights (Glorot, Bengio 2010), or normal ones of `init_std` cut off at two of it; gains 1,
        shifts and head bias 0."""
        generator = torch.Generator().manual_seed(seed)
        params = {}
        for i, shape in enumerate(self.shapes):
            params[f"block{i}.weight"] = self._draw(torch.empty(shape), generator)
            params[f"block{i}.shift"] = torch.zeros(shape[0])
            if self.norm != "none":
                params[f"block{i}.gain"] = torch.ones(shape[0])
        if self.outputs is not None:
            head = torch.empty(self.outputs, self.features)
            params["head.weight"] = self._draw(head, generator)
            params["head.bias"] = torch.zeros(self.outputs)
        return params

    def _draw(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        if self.init_std is None:
            return xavier_uniform_(weight, generator=generator)
        std = self.init_std
        return trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)

    def apply(self, params: Params, x: Tensor, stats: Stats | None = None) -> Tensor:
        """[B, ...] -> [B, outputs], or [B, D] without a head; `stats` replace the batch's own moments."""
        if isinstance(stats, Tensor):
            return apply_row_by_row(functools.partial(self.apply, params), x, stats)
        *_, h = self._layers(params, x, stats)
        h = self.readout(h)
        return h if self.outputs is None else linear(h, params["head.weight"], params["head.bias"])

    def activations(self, params: Params, x: Tensor, stats: Stats | None = None) -> dict[str, Tensor]:
        """Each block's output, flattened, and `features`, the input of the head."""
        if isinstance(stats, Tensor):
            return apply_row_by_row(functools.partial(self.activations, params), x, stats)
        layers = list(self._layers(params, x, stats))
        blocks = {f"block{i}": h.flatten(1) for i, h in enumerate(layers)}
        return blocks | {"features": self.readout(layers[-1])}

    def _layers(self, params: Params, x: Tensor, stats: tuple[Moments, ...] | None) -> Iterator[Tensor]:
        """The output of each block."""
        h, eps = self._prepare(x)
        given = stats if stats is not None else self.fixed
        for i in range(len(self.shapes)):
            h = self._finish(params, i, h, self._normalise(params, i, h, given[i] if given else None), eps)
            yield h

    def query_stats(self, params: Params, support_x: Tensor) -> Stats | None:
        if self.norm == "joined":
            return support_x
        return self.measure(params, support_x) if self.norm == "support" else None

    def calibrate(self, params: Params, x: Tensor) -> Network:
        return replace(self, fixed=self.measure(params, x)) if self.norm == "population" else self

    def measure(self, params: Params, x: Tensor) -> tuple[Moments, ...]:
        """The moments of each block's linear part on the batch x, the earlier blocks normalised with theirs."""
        (h, eps), stats = self._prepare(x), []
        for i in range(len(self.shapes)):
            weight, shift, gain = self._tensors(params, i)
            linear_part = self._linear(i, h, weight)
            stats.append(norms.moments(linear_part))
            h = self._finish(params, i, h, norms.normalise(linear_part, gain, shift, self.norm, stats[i]), eps)
        return tuple(stats)

    def gaussian(self, params: Params, x: Tensor, stats: Stats | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the noisy block's output, [B, D] each."""
        assert self.bottleneck is not None  # a bare `assert x` breaks torch.compile's graph
        if isinstance(stats, Tensor):
            return apply_row_by_row(functools.partial(self.gaussian, params), x, stats)
        x, _ = self.bottleneck.split(x)
        layers = [self.prepare(x), *itertools.islice(self._layers(params, x, stats), self.bottleneck.block + 1)]
        return layers[-1].flatten(1), self._deviation(params, layers[-2]).flatten(1)

    def _prepare(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows of the input -> the first block's input, and their noise."""
        x, eps = self.bottleneck.split(x) if self.bottleneck is not None else (x, None)
        return self.prepare(x), eps

    def _normalise(self, params: Params, i: int, x: Tensor, given: Moments | None) -> Tensor:
        """The linear part of block i, normalised; `given` replaces the moments of the batch at hand.

        Normalising with known moments is a linear map itself, so that it goes into the weight. Those of the first block
        follow from its input: its output, the largest of all, is then written once.
        """
        weight, shift, gain = self._tensors(params, i)
        batch_norm = self.norm in norms.BATCH_NORMS
        if batch_norm and given is None and i == 0 and self.product is not None:
            given = norms.product_moments(x, weight)
        if gain is None:  # norm=none
            h = self._linear(i, x, weight)
            return h + shift.reshape(-1, *[1] * (h.ndim - 2))
        if given is None or not batch_norm:
            return norms.normalise(self._linear(i, x, weight), gain, shift, self.norm)
        factor, shift = norms.as_linear_map(gain, shift, given)
        h = self._linear(i, x, weight * factor.reshape(-1, *[1] * (weight.ndim - 1)))
        return h + norms.per_channel(shift, h)

    def _tensors(self, params: Params, i: int) -> tuple[Tensor, Tensor, Tensor | None]:
        return params[f"block{i}.weight"], params[f"block{i}.shift"], params.get(f"block{i}.gain")

    def _finish(self, params: Params, i: int, before: Tensor, h: Tensor, eps: Tensor | None) -> Tensor:
        """From the normalised linear part h of block i to its output; `before` is the block's input."""
        # ReLU and max-pool commute; pooling first leaves ReLU a quarter of the work.
        h = self._after(i, h)
        h = h if i in self.linear_blocks else self.activation(h)
        if eps is not None and self.bottleneck is not None and i == self.bottleneck.block:
            h = h + self._deviation(params, before) * eps.reshape(h.shape)
        return h

    def _after(self, i: int, h: Tensor) -> Tensor:
        return self.after(h) if self.followed is None or i < self.followed else h

    def _linear(self, i: int, x: Tensor, weight: Tensor) -> Tensor:
        linear = self.product if i == 0 and self.product is not None else self.linear
        return linear(x, weight)

    def _deviation(self, params: Params, before: Tensor) -> Tensor:
        """sigma of the noisy block, a linear map of its own of the block's input `before`."""
        assert self.bottleneck is not None
        weight, shift = (params[name] for name in self.bottleneck.names)
        h = self._linear(self.bottleneck.block, before, weight)
        return sigma(self._after(self.bottleneck.block, norms.normalise(h, None, shift, "none")))
