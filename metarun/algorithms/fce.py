r"""Fully conditional embeddings of matching networks (Vinyals et al. 2016, sections 2.1.1, 2.1.2 and A.1, A.2).

    g(x_j, S) = h_fwd_j + h_bwd_j + g'(x_j)                                  (bidirectional LSTM over S)
    f(x, S):  h^_k, c_k = LSTM(f'(x), [h_{k-1}, r_{k-1}], c_{k-1});   h_k = h^_k + f'(x)
              r_k = sum_j softmax_j(h_k . g(x_j)) g(x_j);   the result is h_P after P `fce_steps`

The cells are written out: `torch.nn.LSTM` cannot be batched over per-task states by `vmap`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metarun.types import Params


def init(features: int, seed: int) -> Params:
    """Weights of the two directions over the support set and of the query's reader, uniform +-1/sqrt(D)."""
    generator = torch.Generator().manual_seed(seed ^ 0x5EED0FCE)  # not the stream that the embedding's weights are from
    # The reader's recurrent input is [h, r], so it is twice as wide.
    recurrent = {"fce.forward": features, "fce.backward": features, "fce.reader": 2 * features}
    params = {}
    for name, width in recurrent.items():
        shape = (4 * features, features + width)
        params[f"{name}.weight"] = (torch.rand(shape, generator=generator) * 2 - 1) / features**0.5
        params[f"{name}.bias"] = torch.zeros(4 * features)
    return params


def support_context(params: Params, z_SD: Tensor) -> Tensor:
    """g(x_j, S) for every support row, [S, D]."""
    forward = _scan(params, "fce.forward", z_SD)
    backward = _scan(params, "fce.backward", z_SD.flip(0)).flip(0)
    return forward + backward + z_SD


def query_context(params: Params, z_MD: Tensor, keys_SD: Tensor, steps: int) -> Tensor:
    """f(x, S) for every query row, [M, D]."""
    h, c = torch.zeros_like(z_MD), torch.zeros_like(z_MD)
    r = torch.zeros_like(z_MD)
    for _ in range(steps):
        hidden, c = _cell(params, "fce.reader", z_MD, torch.cat([h, r], -1), c)
        h = hidden + z_MD
        r = torch.softmax(h @ keys_SD.T, -1) @ keys_SD
    return h


def _scan(params: Params, name: str, z_SD: Tensor) -> Tensor:
    h = c = torch.zeros_like(z_SD[0])
    states = []
    for z_D in z_SD:
        h, c = _cell(params, name, z_D, h, c)
        states.append(h)
    return torch.stack(states)


def _cell(params: Params, name: str, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One LSTM step: gates i, f, o and candidate g from [x, h]."""
    gates = torch.cat([x, h], -1) @ params[f"{name}.weight"].T + params[f"{name}.bias"]
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c
