"""A vision transformer for images of few-shot benchmarks (Dosovitskiy et al. 2021, arXiv 2010.11929).

    h_0 = [token, P x_1, ..., P x_N] + position
    u = h + attention(norm(h));   h' = u + W_2 gelu(W_1 norm(u))          in each of `depth` blocks
    out = the token of norm(h), or the mean of its patches (without a token then)

Symbols: x_1 ... x_N the patches of `patch` x `patch` pixels, P their linear embedding. The first weights are normal, of
deviation 0.02, shifts 0 (Touvron et al. 2021, arXiv 2012.12877). Patches enter by a matrix product, so that no weight
is that of a convolution and tasks are batched together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metarun.errors import SettingError, require
from metarun.models.module import NO_HEAD, ModuleNetwork, make_network
from metarun.models.network import require_inputs

LEAST_PATCHES, MOST_PATCHES = 49, 1024


def vit(
    input_shape: tuple[int, ...],
    outputs: int | None,
    patch: int | None,
    width: int,
    depth: int,
    heads: int,
    hidden: int,
    dropout: float,
    readout: str,
    norm: str,
) -> ModuleNetwork:
    """`patch` None: the largest that leaves 49 patches or more. It has layer normalisation whatever `norm` is."""
    require_inputs("vit", input_shape, "images")
    for key, value in {"width": width, "depth": depth, "heads": heads, "hidden": hidden}.items():
        require(value >= 1, key, value, "must be at least 1")
    require(width % heads == 0, "heads", heads, f"must divide the width {width}")
    require(0 <= dropout < 1, "dropout", dropout, "must be at least 0 and below 1")
    require(readout in ("token", "mean"), "readout", readout, "choices: token, mean")
    channels, *sides = input_shape
    size = choose_patch(sides, patch)

    def make() -> nn.Module:
        count = math.prod(sides) // size**2
        return ViT(channels, count, size, width, depth, heads, hidden, dropout, outputs, readout)

    return make_network(make, "vit", input_shape, outputs, "head" if outputs is not None else NO_HEAD, norm)


def choose_patch(sides: Sequence[int], patch: int | None) -> int:
    """`patch` itself if it divides the sides of an image; for None the largest that leaves `LEAST_PATCHES` or more."""
    counts = {p: math.prod(sides) // p**2 for p in range(1, min(sides) + 1) if all(s % p == 0 for s in sides)}
    possible = [p for p, count in counts.items() if count <= MOST_PATCHES]
    chosen = max((p for p in possible if counts[p] >= LEAST_PATCHES), default=None) if patch is None else patch
    if chosen not in possible:
        sizes = ", ".join(map(str, possible)) or "no"
        raise SettingError("patch", patch, f"images of {'x'.join(map(str, sides))} can have patches of {sizes} pixels")
    return chosen


class ViT(nn.Module):
    def __init__(
        self,
        channels: int,
        patches: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        dropout: float,
        outputs: int | None,
        readout: str,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch**2, width)
        self.token = nn.Parameter(torch.empty(1, width)) if readout == "token" else None
        self.position = nn.Parameter(torch.empty(patches + (readout == "token"), width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, hidden, dropout, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, outputs) if outputs is not None else None
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))  # [B, C, h, p, w, p]
        h = self.embed(rows.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))
        if self.token is not None:
            h = torch.cat([self.token.expand(len(h), 1, -1), h], 1)
        h = h + self.position
        for block in self.blocks:
            h = block(h)
        z = self.norm(h)
        z = z.mean(1) if self.token is None else z[:, 0]
        return z if self.head is None else self.head(z)
