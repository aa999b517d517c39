"""The networks as most torch code has them: modules, and the same ones as functions of a dictionary of weights.

No convolution has a bias, since a shift follows each; batch normalisation uses the statistics of the batch at hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.tasks import Work


class Conv4(nn.Module):
    """Four blocks of 3x3 convolution, batch norm, ReLU (and 2x2 max-pool), a readout and perhaps a head."""

    def __init__(self, channels: int, filters: int, pool: str, readout: str) -> None:
        super().__init__()
        stride = 2 if pool == "stride" else 1
        widths = [channels, filters, filters, filters, filters]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride, padding=1, bias=False) for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(filters, track_running_stats=False) for _ in range(4))
        self.pool, self.readout = pool, readout
        self.head: nn.Linear | None = None

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
            if self.pool == "max":
                x = F.max_pool2d(x, 2)
        x = x.mean((2, 3)) if self.readout == "mean" else x.flatten(1)
        return x if self.head is None else self.head(x)


class MLP(nn.Module):
    """Linear layers with ReLU between."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.head: nn.Linear | None = None

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return x if self.head is None else self.head(x)


def conv4(input_shape: tuple[int, ...], outputs: int | None, filters: int, pool: str, readout: str) -> nn.Module:
    """For `metarun model=module`."""
    net = Conv4(input_shape[0], filters, pool, readout)
    with torch.no_grad():
        features = net(torch.zeros(2, *input_shape)).shape[1]
    net.head = None if outputs is None else nn.Linear(features, outputs)
    return net


def module(work: Work) -> nn.Module:
    """The network of a case with its initial weights."""
    shapes = {k: v.shape for k, v in work.theta.items()}
    net: Any
    if len(shapes["block0.weight"]) == 4:
        out, into = shapes["block0.weight"][:2]
        net = Conv4(into, out, work.model["pool"], work.model["readout"])
    else:
        blocks = [k for k in shapes if k.endswith(".weight") and k.startswith("block")]
        net = MLP([shapes["block0.weight"][1], *(shapes[k][0] for k in blocks)])
    if "head.weight" in shapes:
        net.head = nn.Linear(*reversed(shapes["head.weight"]))
    own = own_names(work.theta)
    net.to(work.device, getattr(torch, work.dtype))
    net.load_state_dict({own[k]: torch.tensor(v) for k, v in work.theta.items()})
    return net.train()


def own_names(theta: Mapping[str, Any]) -> dict[str, str]:
    """metarun's name of each weight -> the module's."""
    image = theta["block0.weight"].ndim == 4
    names = {}
    for name in theta:
        block, _, kind = name.partition(".")
        i = block.removeprefix("block")
        linear = f"convs.{i}" if image else f"layers.{i}"
        where = {"weight": f"{linear}.weight", "gain": f"norms.{i}.weight"}
        where["shift"] = f"norms.{i}.bias" if image else f"{linear}.bias"
        names[name] = name if block == "head" else where[kind]
    return names


def functional(work: Work, w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network with weights of metarun's names."""
    if w["block0.weight"].ndim == 2:
        for i in range(sum(k.endswith(".shift") for k in w)):
            x = F.relu(F.linear(x, w[f"block{i}.weight"], w[f"block{i}.shift"]))
        return F.linear(x, w["head.weight"], w["head.bias"])
    stride = 2 if work.model["pool"] == "stride" else 1
    for i in range(4):
        x = F.conv2d(x, w[f"block{i}.weight"], stride=stride, padding=1)
        x = F.relu(F.batch_norm(x, None, None, w[f"block{i}.gain"], w[f"block{i}.shift"], training=True))
        if work.model["pool"] == "max":
            x = F.max_pool2d(x, 2)
    x = x.mean((2, 3)) if work.model["readout"] == "mean" else x.flatten(1)
    return F.linear(x, w["head.weight"], w["head.bias"]) if "head.weight" in w else x


def loss(prediction: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(prediction, y) if y.is_floating_point() else F.cross_entropy(prediction, y)


def tensors(work: Work) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Support x and y, query x and y of each task."""
    names = ("support_x", "support_y", "query_x", "query_y")
    return list(zip(*(torch.tensor(work.arrays[k], device=work.device).unbind() for k in names), strict=True))


def optimizer(work: Work, parameters: list[Tensor]) -> torch.optim.Optimizer:
    kind = torch.optim.SGD if work.optim["name"] == "sgd" else torch.optim.Adam
    return kind(parameters, lr=work.optim["lr"])


def gradients(work: Work, net: nn.Module) -> dict[str, np.ndarray]:
    """The `.grad` of a module's weights, by metarun's names."""
    found, own = dict(net.named_parameters()), own_names(work.theta)
    return {k: found[own[k]].grad.cpu().numpy().copy() for k in work.theta}  # type: ignore[union-attr]
