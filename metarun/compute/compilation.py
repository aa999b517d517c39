"""Compile the outer step where that pays. Settings alone decide, never a clock, so that a resumed run agrees."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor

from metarun.compute.ahead_of_time import AheadOfTime
from metarun.compute.device import Placement
from metarun.compute.threads import count_weights, is_small
from metarun.storage.cache_entries import COMPILED, mark_used
from metarun.storage.locks import share_until_exit
from metarun.storage.run_folder import cache_folder
from metarun.types import Params

log = logging.getLogger(__name__)

LARGE_MODEL = 1_000_000
"""Weights of a fully connected network below which compiling pays: a step of an MLP 40-40 (1761 weights) is bound by
launching kernels, and one of a neural process (some 200 000) by that and by copies. Convolutions gain nothing."""

COMPILE_PAYS_AFTER = 5_000
"""Outer steps after which the half minute that compiling takes is won back on such a model."""


def should_compile(placement: Placement, params: Params, steps: int) -> bool:
    """Whether to compile: `device.compile` or the size of the work asks for it, and a compiler is installed."""
    fully_connected = all(p.ndim <= 2 for p in params.values())
    small = fully_connected and count_weights(params) < LARGE_MODEL
    pays = small and steps >= COMPILE_PAYS_AFTER and placement.device.type == "cpu"
    if placement.compile is False or (placement.compile == "auto" and not pays):
        return False
    if placement.device.type == "cpu" and not any(shutil.which(c) for c in ("g++", "clang++", "cl")):
        log.warning("device.compile=%s: no C++ compiler found, running uncompiled", placement.compile)
        return False
    return True


OURS = ("metarun.", "torch")
"""Modules whose functions are the same at every call."""


def is_pure(part: Any) -> bool:
    """Whether a part of a function is metarun's own: values, functions, and objects of its classes made of such.
    Their Python never changes once they are made; that of a user's class or `nn.Module` may."""
    if isinstance(part, partial):
        return is_pure((part.func, part.args, part.keywords))
    if isinstance(part, (tuple, list, Mapping)):
        return all(map(is_pure, part.values() if isinstance(part, Mapping) else part))
    if part is None or isinstance(part, (str, int, float, Enum, Tensor)):
        return True
    if isinstance(part, (FunctionType, BuiltinFunctionType, type)):
        return str(part.__module__).startswith(OURS)
    return type(part).__module__.startswith("metarun.") and is_pure(getattr(part, "__dict__", {}))


def compile_function(
    function: Callable[..., Any], placement: Placement, params: Params, parts: Any = ()
) -> Callable[..., Any]:
    """Return the function, compiled at its first call. The cache folder keeps the result for later runs.

    On a CPU it is compiled ahead of time (ahead_of_time.py), or by `torch.compile` if it cannot be traced as a whole or
    if one of its `parts` is not metarun's own: that compiler notices where Python's values change.
    """
    folder = cache_folder() / COMPILED
    if os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder)) == str(folder):
        with contextlib.suppress(OSError):  # it can only be read
            share_until_exit(folder)  # so that `metarun cache` leaves it alone
        mark_used(folder)
    if placement.device.type != "cpu":
        return torch.compile(function, dynamic=False)
    options: dict[str, Any] = {}
    if platform.machine() in ("x86_64", "AMD64"):
        # Any compiler that reads torch's headers knows AVX and AVX-512; to find out takes 6 s of the first 16.
        options["cpp.vec_isa_ok"] = True
    if is_small(params):
        options["cpp.threads"] = 1
    whole = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    as_pieces = partial(torch.compile, function, dynamic=False, options=options | {"cpp_wrapper": True})
    return AheadOfTime(function, whole, options, otherwise=as_pieces) if is_pure(parts) else as_pieces()
