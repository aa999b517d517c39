"""The outer optimizer: the learning rate at a step, and one update of the meta-parameters."""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any

import torch

from metarun.compute.linalg import norm, scale, sqrt
from metarun.config.schema import OptimConfig
from metarun.errors import require
from metarun.types import MOMENTS, NOT_WEIGHTS, Params, Rates


def learning_rate(settings: OptimConfig, step: int, steps: int) -> float:
    """The rate of step 0 .. steps - 1.

    constant: lr; linear: f + (lr - f)(1 - step/steps), as Reptile; cosine: f + (lr - f)(1 + cos(pi step/steps)) / 2,
    with f `final_lr`; halving: lr / 2^floor(step / halve_every), as ProtoNet.
    """
    progress = step / steps
    factor = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "halving": 0.5 ** (step // settings.halve_every),
    }
    lowest = settings.final_lr if settings.schedule in ("linear", "cosine") else 0.0
    return lowest + (settings.lr - lowest) * factor[settings.schedule]


def build_optimizer(settings: OptimConfig, params: Params) -> torch.optim.Optimizer:
    """A torch optimizer over the meta-parameters, which stay plain tensors without `requires_grad`.

    With `learned_lr` those that are no weights take steps of learned_lr / lr times the rate of the weights. Raise
    `SettingError` if there are none.
    """
    groups: list[dict[str, Any]] = [{"params": [p for name, p in params.items() if not name.startswith(NOT_WEIGHTS)]}]
    # A decayed weight of a penalty would mean nothing.
    own = [p for name, p in params.items() if name.startswith(NOT_WEIGHTS) and not name.startswith(MOMENTS)]
    groups += [{"params": own, "weight_decay": 0.0}] if own else []
    if settings.learned_lr is not None:
        require(bool(own), "optim.learned_lr", settings.learned_lr, "must be null where nothing but weights is learned")
        groups[-1]["ratio"] = settings.learned_lr / settings.lr
    decay = settings.weight_decay
    if settings.name == "sgd":
        return _uncompiled(torch.optim.SGD)(groups, settings.lr, momentum=settings.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    fused = groups[0]["params"][0].device.type != "mps"
    return _uncompiled(kind)(groups, settings.lr, eps=settings.eps, weight_decay=decay, fused=fused)


@functools.cache
def _uncompiled(kind: type[torch.optim.Optimizer]) -> Any:
    """The same class without the wrappers that matter to a compiled optimizer alone, which import torch's compiler
    (compute/late_compiler.py), and without the hooks around a step, which take as long as that of a small network."""
    wrapped = ("add_param_group", "load_state_dict", "state_dict", "step", "zero_grad")
    own: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in wrapped}
    return type(kind.__name__, (kind,), own | {"_patch_step_function": lambda self: None})


def apply_update(optimizer: torch.optim.Optimizer, params: Params, gradient: Params, lr: float) -> None:
    """One step of the optimizer along the given meta-gradient, in place.

    An inner optimizer's second moments are no matter of the outer one: theirs is the way back from their new values.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("ratio", 1.0)
    for name, g in gradient.items():
        if name.startswith(MOMENTS):
            params[name].sub_(g)
            continue
        # The fused kernels walk both memories in order, and a gradient may come out of a convolution in another one.
        params[name].grad = g.contiguous()
    with torch.no_grad():
        optimizer.step()
    for name in gradient:
        params[name].grad = None


def step_rates(optimizer: torch.optim.Optimizer, params: Params, lr: float) -> Rates:
    """How far each weight's step goes for its (smoothed) gradient: lr / (1 - momentum) for SGD, whose steps add up to
    that, lr / (sqrt(v_hat) + eps) for Adam.

    A proximal step in this metric minimises the same objective as the penalty's gradient through the optimizer would.
    """
    group = optimizer.param_groups[0]
    if "betas" not in group:
        return lr / (1 - group["momentum"])
    rates = {}
    for name, p in params.items():
        if p in optimizer.state:
            state = optimizer.state[p]
            # 1 - beta^step without the cancellation that single precision would have in the first steps.
            correction = -torch.expm1(state["step"].to(p) * math.log(group["betas"][1]))
            rates[name] = lr * (1 / (sqrt(state["exp_avg_sq"] / correction) + group["eps"]))
    return rates


def stable_rates(optimizer: torch.optim.Optimizer, params: Params, lr: float) -> Rates:
    """The rates R of the weights for which steps by exact gradients on a quadratic of Hessian H are stable while the
    largest eigenvalue of R H is below 2.

    The characteristic polynomial z^2 - (1 + b - r h) z + b, of momentum b with r = lr and of Adam with r = lr (1 - b) /
    (sqrt(v_hat) + eps), has its roots inside the unit circle for 0 < r h < 2 (1 + b): so R = r / (1 + b).
    """
    group = optimizer.param_groups[0]
    b = group["betas"][0] if "betas" in group else group["momentum"]
    rates, factor = step_rates(optimizer, params, lr), (1 - b) / (1 + b)
    return {name: factor * rate for name, rate in rates.items()} if isinstance(rates, dict) else factor * rates


def clip_gradient(gradient: Params, limit: float | None) -> Params:
    """The gradient, scaled down to norm `limit` if it is longer; an inner optimizer's second moments stay whole."""
    if limit is None:
        return gradient
    own = {name: g for name, g in gradient.items() if not name.startswith(MOMENTS)}
    return gradient | scale(torch.clamp(limit / norm(own), max=1.0), own)
