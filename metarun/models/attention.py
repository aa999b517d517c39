r"""Multi-head attention over a set (Vaswani et al. 2017, arXiv 1706.03762), as attentive neural processes use it.

    head h:  softmax_s( (W_q q)_h . (W_k k_s)_h / sqrt(D / H) )  over the rows s with here = 1, times (W_v v_s)_h
    out      W_o [head 1, ... head H]

Symbols: H `heads`, D `width` of queries, keys, values and output. Written in plain operations, so that `vmap` and
second derivatives work.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.init import xavier_uniform_

from metarun.errors import require
from metarun.types import Params

MAPS = ("query", "key", "value", "out")


@dataclass(frozen=True)
class Attention:
    width: int
    heads: int
    matmul_only: bool = True

    def __post_init__(self) -> None:
        fits = self.heads >= 1 and self.width % self.heads == 0
        require(fits, "heads", self.heads, f"must be at least 1 and divide the width {self.width}")

    def init(self, seed: int) -> Params:
        """Xavier-uniform maps."""
        generator = torch.Generator().manual_seed(seed)
        shape = self.width, self.width
        return {f"{name}.weight": xavier_uniform_(torch.empty(shape), generator=generator) for name in MAPS}

    def apply(self, params: Params, queries: Tensor, keys: Tensor, values: Tensor, here: Tensor) -> Tensor:
        """Queries [M, D], keys and values [S, D], here [S] 1 or 0 -> [M, D]."""
        given = (("query", queries), ("key", keys), ("value", values))
        q, k, v = ((rows @ params[f"{name}.weight"].T).unflatten(1, (self.heads, -1)) for name, rows in given)
        logits_HMS = torch.einsum("mhd,shd->hms", q, k) * (self.width / self.heads) ** -0.5
        weights_HMS = torch.where(here > 0, logits_HMS, -torch.inf).softmax(-1)
        return torch.einsum("hms,shd->mhd", weights_HMS, v).flatten(1) @ params["out.weight"].T
