r"""Take weights near zero, and the units that then put out nothing, out of a trained network.

    threshold     w_j <- 0 where |w_j| <= T
    silent        unit c of a block with a ReLU: shift_c = 0, and row c of the weight or gain_c is 0
    cut           the network without its silent units, exactly the same function

A silent unit puts out 0 whatever the input: its linear part is 0 (or its gain takes it to 0), a normalisation by the
unit's own moments leaves 0 at 0, and so do max-pooling and ReLU. The derivative of ReLU at 0 is taken as 0, so no step
of an inner loop moves the unit either, and neither does Adam, whose step at gradient 0 is 0. `norm=group` and
`norm=layer` normalise over several units together, where a silent one counts: nothing is cut there. Nor are the units
of the last block where more than a head reads its features (the LSTMs of matching networks), or a noisy network's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.compute.linalg import split_layers
from metarun.diagnostics.task_sample import network_weights
from metarun.models.network import Network
from metarun.models.norm import BATCH_NORMS
from metarun.types import NOT_WEIGHTS, Params

CUTTABLE_NORMS = (*BATCH_NORMS, "none")


class Pruned(NamedTuple):
    model: Any
    params: Params
    cut: dict[str, int]  # how many units each block lost


def zero_small_weights(params: Params, threshold: float) -> Params:
    """Set weights of at most `threshold` to zero; entries of regularizers are left as they are."""

    return {
        name: w if name.startswith(NOT_WEIGHTS) else torch.where(w.abs() <= threshold, 0.0, w)
        for name, w in params.items()
    }


def cut_units(model: Any, params: Params) -> Pruned:
    """The network without its silent units; what cannot be cut is returned as it is."""
    if not isinstance(model, Network) or model.norm not in CUTTABLE_NORMS or model.bottleneck is not None:
        return Pruned(model, params, {})
    masks = find_kept_units(model, params)
    lost = {f"block{i}": int((~keep).sum()) for i, keep in enumerate(masks) if not keep.all()}
    if not lost:
        return Pruned(model, params, {})
    units = [int(keep.sum()) for keep in masks]
    inputs = [model.shapes[0][1], *units]
    shapes = tuple((n, width, *old[2:]) for n, width, old in zip(units, inputs, model.shapes, strict=False))
    area = model.features // model.shapes[-1][0]  # a flattened map has as many features for each unit as pixels
    features = masks[-1].repeat_interleave(area).nonzero().flatten()
    smaller = replace(model, shapes=shapes, features=len(features))
    # Name of a tensor -> the indices that stay on its first axis, and on its second if it has such.
    rows = [keep.nonzero().flatten() for keep in masks]
    indices: dict[str, tuple[Tensor, ...]] = {}
    for i, row in enumerate(rows):
        indices[f"block{i}.weight"] = (row, rows[i - 1]) if i else (row,)
        indices |= {f"block{i}.{name}": (row,) for name in ("shift", "gain")}
    if model.outputs is not None:
        indices["head.weight"] = (torch.arange(model.outputs), features)
    return Pruned(smaller, {name: select(name, w, params, indices) for name, w in params.items()}, lost)


def find_kept_units(model: Network, params: Params) -> list[Tensor]:
    """Which units stay, of each block [units]; one at least.

    A unit is silent where it puts out 0 for every input and stays so.
    """
    found = split_layers(network_weights(params))
    alone = all(name.startswith(("block", "head")) for name in found)  # nothing but the head reads the features
    last = len(model.shapes) - 1
    masks = []
    for i in range(len(model.shapes)):
        block = found[f"block{i}"]
        keep = torch.ones_like(block["shift"], dtype=torch.bool)
        if i not in model.linear_blocks and (i < last or alone):
            empty = (block["weight"].flatten(1) == 0).all(1)
            if "gain" in block:
                empty = empty | (block["gain"] == 0)
            keep = ~(empty & (block["shift"] == 0))
        if not keep.any():
            keep[0] = True
        masks.append(keep)
    return masks


def select(name: str, w: Tensor, params: Params, indices: dict[str, tuple[Tensor, ...]]) -> Tensor:
    """The tensor without rows and columns of cut units; a regularizer's tensor for a weight, of its shape, likewise."""
    for base, index in indices.items():
        own = name.startswith(NOT_WEIGHTS) and name.endswith(f".{base}")
        if base in params and (name == base or own) and w.shape == params[base].shape:
            for axis, keep in enumerate(index):
                w = w.index_select(axis, keep)
            return w.contiguous()
    return w
