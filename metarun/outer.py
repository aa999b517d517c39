"""The outer optimizer: the learning rate at a step, and one update of the meta-parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from metarun.config import OptimConfig
from metarun.types import Params


def learning_rate(settings: OptimConfig, step: int, steps: int) -> float:
    """The rate of step 0 .. steps - 1.

    constant: lr; linear: lr (1 - step/steps), as Reptile; cosine: lr (1 + cos(pi step/steps)) / 2; halving: lr /
    2^floor(step / halve_every), as ProtoNet.
    """
    progress = step / steps
    factor = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "halving": 0.5 ** (step // settings.halve_every),
    }
    return settings.lr * factor[settings.schedule]


def build_optimizer(settings: OptimConfig, params: Params) -> torch.optim.Optimizer:
    """A torch optimizer over the meta-parameters, which stay plain tensors without `requires_grad`."""
    tensors = list(params.values())
    decay = settings.weight_decay
    if settings.name == "sgd":
        return torch.optim.SGD(tensors, settings.lr, momentum=settings.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    fused = tensors[0].device.type != "mps"
    return kind(tensors, settings.lr, eps=settings.eps, weight_decay=decay, fused=fused)


def apply_update(optimizer: torch.optim.Optimizer, params: Params, gradient: Params, lr: float) -> None:
    """One step of the optimizer along the given meta-gradient, in place."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    for name, p in params.items():
        # The fused kernels walk both memories in order, and a gradient may come out of a convolution in another one.
        p.grad = gradient[name].contiguous()
    optimizer.step()
    optimizer.zero_grad()


def clipped(gradient: Params, limit: float | None) -> Params:
    """The gradient, scaled down to norm `limit` if it is longer."""
    if limit is None:
        return gradient
    length = global_norm(gradient.values())
    factor = torch.clamp(limit / length, max=1.0)
    return {k: g * factor for k, g in gradient.items()}


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors]))
