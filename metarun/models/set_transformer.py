r"""A transformer of a context set and of targets that do not see each other (Nguyen and Grover 2022, arXiv 2207.04179).

    u = norm(h + W_o a(h));    h' = norm(u + W_2 relu(W_1 u + b_1) + b_2)          in each of L layers
    a(h)_i = softmax over the rows j that i sees of (W_q h_i) . (W_k h_j) / sqrt(D / H), times W_v h_j, in H heads

A context row sees the context; a target sees the context and itself. norm is layer normalisation with gain and shift.
Symbols: D `width`, H `heads`, L `layers`; W_1 is [2 D, D]. Written in plain operations, for `vmap`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, relu
from torch.nn.init import xavier_uniform_

from metarun.errors import require
from metarun.types import Params


@dataclass(frozen=True)
class SetTransformer:
    width: int
    heads: int
    layers: int
    matmul_only: bool = True

    def __post_init__(self) -> None:
        fits = self.heads >= 1 and self.width % self.heads == 0
        require(fits, "heads", self.heads, f"must be at least 1 and divide the width {self.width}")
        require(self.layers >= 1, "layers", self.layers, "must be at least 1")

    def init(self, seed: int) -> Params:
        """Xavier-uniform maps, gains 1, shifts 0."""
        generator, d = torch.Generator().manual_seed(seed), self.width
        params: Params = {}
        for i in range(self.layers):
            shapes = dict.fromkeys(("query", "key", "value", "out"), (d, d)) | {"up": (2 * d, d), "down": (d, 2 * d)}
            for name, shape in shapes.items():
                params[f"layer{i}.{name}.weight"] = xavier_uniform_(torch.empty(shape), generator=generator)
            params |= {f"layer{i}.{name}.shift": torch.zeros(shapes[name][0]) for name in ("up", "down")}
            for name in ("norm1", "norm2"):
                params |= {f"layer{i}.{name}.gain": torch.ones(d), f"layer{i}.{name}.shift": torch.zeros(d)}
        return params

    def apply(self, params: Params, context: Tensor, here: Tensor, targets: Tensor) -> Tensor:
        """Context rows [S, D], here [S] 1 or 0, targets [M, D] -> targets [M, D]."""
        for i in range(self.layers):
            layer = {k.removeprefix(f"layer{i}."): w for k, w in params.items() if k.startswith(f"layer{i}.")}
            seen = self._attend(layer, targets, context, here, own=True)
            context, targets = (
                self._finish(layer, context, self._attend(layer, context, context, here, own=False)),
                self._finish(layer, targets, seen),
            )
        return targets

    def _attend(self, layer: Params, rows: Tensor, context: Tensor, here: Tensor, own: bool) -> Tensor:
        """[M, D]; with `own` each row also sees itself."""
        q_MHE = self._heads(layer, "query", rows)
        k_SHE, v_SHE = (self._heads(layer, name, context) for name in ("key", "value"))
        logits_HMS = torch.where(here > 0, torch.einsum("mhe,she->hms", q_MHE, k_SHE), -torch.inf)
        scale = (self.width / self.heads) ** -0.5
        if not own:
            a_HMS = (scale * logits_HMS).softmax(-1)
            return torch.einsum("hms,she->mhe", a_HMS, v_SHE).flatten(1)
        k_MHE, v_MHE = (self._heads(layer, name, rows) for name in ("key", "value"))
        self_HM = (q_MHE * k_MHE).sum(-1).T
        a_HMT = (scale * torch.cat([logits_HMS, self_HM[..., None]], -1)).softmax(-1)
        seen = torch.einsum("hms,she->mhe", a_HMT[..., :-1], v_SHE)
        return (seen + a_HMT[..., -1].T[..., None] * v_MHE).flatten(1)

    def _heads(self, layer: Params, name: str, rows: Tensor) -> Tensor:
        return (rows @ layer[f"{name}.weight"].T).unflatten(1, (self.heads, -1))

    def _finish(self, layer: Params, h: Tensor, seen: Tensor) -> Tensor:
        u = self._norm(layer, "norm1", h + seen @ layer["out.weight"].T)
        inside = relu(u @ layer["up.weight"].T + layer["up.shift"])
        return self._norm(layer, "norm2", u + inside @ layer["down.weight"].T + layer["down.shift"])

    def _norm(self, layer: Params, name: str, h: Tensor) -> Tensor:
        return layer_norm(h, (self.width,), layer[f"{name}.gain"], layer[f"{name}.shift"])
