"""What a module puts out for inputs of a shape, and whether tasks can be batched over it: a trial on zeros.

The trial takes second derivatives under `vmap`, as a meta-gradient does, of two tasks of two rows. So a branch on a
tensor's value, `.item()`, random numbers of the module's own and changes in place are found before the first step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from metarun.compute.task_axis import find_cause
from metarun.errors import UserError, one_line
from metarun.types import Params

ATTENTION = (scaled_dot_product_attention, multi_head_attention_forward)

Apply = Callable[[Params, Tensor], Any]


class Trial(NamedTuple):
    output: Tensor  # [2, ...]
    attends: bool  # calls scaled_dot_product_attention


class _Watch(TorchFunctionMode):
    """Notes whether attention is computed."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or func in ATTENTION
        return func(*args, **(kwargs or {}))


def try_once(name: str, apply: Apply, params: Params, constants: Params, input_shape: tuple[int, ...]) -> Trial:
    """Apply the module to two rows of zeros. Raise `UserError` if it fails or changes one of its `constants`."""
    before = {k: v.clone() for k, v in constants.items()}
    rows = _zeros(params, input_shape)
    try:
        with torch.no_grad(), _Watch() as watch:
            output = apply(params, rows)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except Exception as error:  # of the user's code
        failed = f"fails on inputs of shape {list(rows.shape)}"
        raise UserError(f"{name}: {failed} ({type(error).__name__}: {one_line(error)[:300]})") from error
    changed = [k for k, v in constants.items() if not torch.equal(v, before[k])]
    if changed:
        raise UserError(f"{name}: changes its buffer {changed[0]} in place; a call must not depend on others")
    if not isinstance(output, Tensor) or output.ndim < 1 or len(output) != len(rows):
        got = f"a tensor of shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"{name}: must return one row for each of its {len(rows)} rows of input, and returns {got}")
    return Trial(output, watch.seen)


def check_batching(name: str, apply: Apply, params: Params, input_shape: tuple[int, ...]) -> None:
    """Raise `UserError` with the cause if the module cannot be batched over tasks with weights of their own."""

    def loss(weights: Params, x: Tensor) -> Tensor:
        return apply(weights, x).square().sum()

    def slope(weights: Params, x: Tensor) -> Tensor:
        return torch.stack([g.square().sum() for g in grad(loss)(weights, x).values()]).sum()

    def batch(device: str) -> None:
        several = {k: torch.stack([v, v]).to(device) for k, v in params.items()}
        x = _zeros(params, input_shape).to(device)
        vmap(grad(slope))(several, torch.stack([x, x]))

    if not params:
        raise UserError(f"{name}: has no parameters to train, or none before its head")
    with contextlib.suppress(Exception):  # also of a module that makes tensors on the CPU
        return batch("meta")  # shapes alone: with arithmetic a large module takes seconds
    try:
        batch("cpu")
    except UserError:
        raise
    except Exception as error:  # torch raises many kinds
        cause = find_cause(error) or f"{type(error).__name__}: {one_line(error)[:300]}"
        raise UserError(f"{name}: cannot be batched over tasks: {cause}") from error


def _zeros(params: Params, input_shape: tuple[int, ...]) -> Tensor:
    like = next((p for p in params.values() if p.is_floating_point()), torch.zeros(()))
    return torch.zeros(2, *input_shape, dtype=like.dtype, device=like.device)
