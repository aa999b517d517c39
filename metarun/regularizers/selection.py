"""Which weights a penalty looks at."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from metarun.types import NOT_WEIGHTS, Params

Targets = tuple[str, ...] | None


def select_tensors(weights: Params, targets: Targets, default: Callable[[Tensor], bool] = lambda _: True) -> Params:
    """The network's tensors whose names begin with one of `targets` ("head", "block0.weight"); None: those that
    `default` takes."""
    network = {name: w for name, w in weights.items() if not name.startswith(NOT_WEIGHTS)}
    return {name: w for name, w in network.items() if (default(w) if targets is None else name.startswith(targets))}


def is_linear_map(w: Tensor) -> bool:
    """Whether it is the weight of a linear map or a convolution; biases, shifts and gains are vectors."""
    return w.ndim > 1


def value_for(name: str, given: Mapping[str, float], otherwise: float) -> float:
    """The number of the longest given prefix of a tensor's name."""
    prefixes = [prefix for prefix in given if name.startswith(prefix)]
    return given[max(prefixes, key=len)] if prefixes else otherwise
