"""The weights that a penalty is of, and the numbers that belong to them by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from metarun.types import NOT_WEIGHTS, Params

Targets = tuple[str, ...] | None


def select_tensors(weights: Params, targets: Targets, default: Callable[[Tensor], bool] = lambda _: True) -> Params:
    """The network's tensors whose names begin with one of `targets` ("head", "block0.weight"); with None those for
    which `default` holds."""
    network = {name: w for name, w in weights.items() if not name.startswith(NOT_WEIGHTS)}
    return {name: w for name, w in network.items() if (default(w) if targets is None else name.startswith(targets))}


def is_linear_map(w: Tensor) -> bool:
    """Whether w is the weight of a linear map or a convolution; biases, shifts and gains are vectors."""
    return w.ndim > 1


def value_for(name: str, given: Mapping[str, float], otherwise: float) -> float:
    """The number under the longest prefix of a tensor's name in `given`; `otherwise` without one."""
    prefixes = [prefix for prefix in given if name.startswith(prefix)]
    return given[max(prefixes, key=len)] if prefixes else otherwise


LEARN = ("scalar", "layer", "diagonal")
"""What has a learned number of its own: all weights together, each tensor or each weight."""


def init_learned(key: str, learn: str, weights: Params, start: Callable[[str], float]) -> Params:
    """The meta-parameters KEY or KEY.TENSOR of learned numbers, from `start` of a tensor's name ("" for all)."""
    if learn == "scalar":
        return {key: torch.tensor(start(""))}
    if learn == "layer":
        return {f"{key}.{name}": torch.tensor(start(name)) for name in weights}
    return {f"{key}.{name}": torch.full_like(w, start(name)) for name, w in weights.items()}


def learned_value(key: str, name: str, own: Params) -> Tensor | None:
    """The learned number of the tensor `name`, or None if none is learned."""
    return own.get(key, own.get(f"{key}.{name}"))
