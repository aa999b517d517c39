r"""How many of a network's weights are zero, near zero, or used.

Of a tensor w with n entries and a threshold T (in units of the weights, not of their scale):

    zeros      #{j : w_j = 0} / n                       exact zeros
    small      #{j : |w_j| <= T} / n                    zeros among them
    effective  (sum_j w_j^2)^2 / sum_j w_j^4            0 for a tensor of zeros

`effective` is the participation ratio, the inverse of the sparsity measure kappa_4 (Hurley, Rickard 2009, arXiv
0811.4706): k numbers of one size beside zeros give k, n Gaussian ones n/3 for large n. It changes neither with the
tensor's scale nor through zeros that are added, and needs no threshold and no Hessian, as MacKay's
sum_j h_j / (h_j + lambda) would. It says how evenly weights are used, not how many directions the data determine.
Tensors differ in scale (gains near 1, weights near 0.05), so it is taken of each and summed; shares are of all numbers.

A unit is one output channel of a block: its row of the block's weight, its shift and its gain. It is a zero unit if
all of these are exactly 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.compute.linalg import split_layers
from metarun.diagnostics.task_sample import network_weights
from metarun.types import Params

THRESHOLD = 1e-3
UNIT_TENSORS = ("weight", "shift", "gain")  # of a block, with one row or number per unit


class Counts(NamedTuple):
    """Counts of one tensor, of a layer or of the whole network."""

    parameters: int = 0
    nonzero: int = 0
    small: int = 0
    effective: float = 0.0
    units: int = 0
    zero_units: int = 0

    def facts(self) -> dict[str, Any]:
        """Counts, and the shares of the parameters."""
        size = max(self.parameters, 1)
        return {
            "parameters": self.parameters,
            "nonzero": self.nonzero,
            "zeros_share": (self.parameters - self.nonzero) / size,
            "small_share": self.small / size,
            "effective_parameters": self.effective,
            "units": self.units,
            "zero_units": self.zero_units,
        }


def sparsity(params: Params, threshold: float = THRESHOLD) -> dict[str, Any]:
    """{"threshold", "total": facts, "layers": {layer: facts}} of the network's tensors; `Counts.facts` has the keys."""
    layers = split_layers(network_weights(params))
    counts = {layer: count_layer(tensors, threshold) for layer, tensors in layers.items()}
    facts = {layer: each.facts() for layer, each in counts.items()}
    return {"threshold": threshold, "total": add(counts.values()).facts(), "layers": facts}


def add(counts: Iterable[Counts]) -> Counts:
    return Counts(*(sum(column) for column in zip(Counts(), *counts, strict=True)))


def count_layer(layer: Params, threshold: float) -> Counts:
    """Counts of one layer's tensors, and of its units if it is a block."""
    whole = add(
        Counts(
            parameters=w.numel(),
            nonzero=int(w.count_nonzero()),
            small=int((w.abs() <= threshold).sum()),
            effective=participation(w),
        )
        for w in layer.values()
    )
    if "weight" not in layer or "shift" not in layer:  # not a block
        return whole
    tensors = [layer[name] for name in UNIT_TENSORS if name in layer]
    rows = [w.flatten(1) if w.ndim > 1 else w[:, None] for w in tensors]
    zero = torch.stack([(row == 0).all(1) for row in rows]).all(0)  # [units]
    return whole._replace(units=len(zero), zero_units=int(zero.sum()))


def participation(w: Tensor) -> float:
    """(sum w^2)^2 / sum w^4; in float64 and of w / max|w|, so that no power leaves the numbers' range."""
    values = w.cpu().double()  # not every device has float64
    largest = values.abs().max() if w.numel() else torch.zeros(())
    if not 0 < float(largest) < float("inf"):
        return 0.0
    squares = (values / largest).square()
    return float(squares.sum() ** 2 / squares.square().sum())
