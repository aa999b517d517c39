"""Compile the outer step where that pays. Settings alone decide, never a clock, so that a resumed run agrees."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
import sys
from collections.abc import Callable, Hashable, Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor

from metarun.compute.ahead_of_time import AheadOfTime
from metarun.compute.device import Placement
from metarun.compute.threads import count_weights, is_connected, is_small
from metarun.storage.cache_entries import COMPILED, mark_used
from metarun.storage.locks import share_until_exit
from metarun.storage.run_folder import cache_folder
from metarun.types import Params

log = logging.getLogger(__name__)

LARGE_MODEL = 1_000_000
"""Weights of a network below which compiling pays: a step of an MLP 40-40 (1761 weights) is bound by launching kernels,
and one of a neural process (some 200 000) by that and by copies."""

COMPILE_PAYS_AFTER = 5_000
"""Outer steps after which the half minute that compiling takes is won back on such a model, if fully connected."""


def should_compile(placement: Placement, params: Params, steps: int, pays_after: int | None = None) -> bool:
    """Whether to compile: `device.compile` or the size of the work asks for it, and a compiler is installed.

    `pays_after`: the steps after which compiling is won back; None: COMPILE_PAYS_AFTER of a fully connected network,
    never of another.
    """
    if pays_after is None and is_connected(params):
        pays_after = COMPILE_PAYS_AFTER
    small = placement.device.type == "cpu" and count_weights(params) < LARGE_MODEL
    pays = small and pays_after is not None and steps >= pays_after
    if placement.compile is False or (placement.compile == "auto" and not pays):
        return False
    if placement.device.type == "cpu" and not any(shutil.which(c) for c in ("g++", "clang++", "cl")):
        log.warning("device.compile=%s: no C++ compiler found, running uncompiled", placement.compile)
        return False
    return True


VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Where torch's compiler keeps what it made: the user's choice, else the cache folder."""

OURS = ("metarun.", "torch")
"""Modules whose functions are the same at every call."""


class Foreign(Exception):
    """A part is not metarun's own."""


def identify(part: Any) -> Hashable:
    """What a part of a function is: equal for parts that compute the same. Raise `Foreign` unless it is a value, a
    function, or an object of metarun's classes made of such: their Python never changes once they are made, that of a
    user's class or `nn.Module` may."""
    if part is None or isinstance(part, (str, int, float, Enum)):
        return type(part), part
    if isinstance(part, Tensor):
        plain = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return part.dtype, tuple(part.shape), plain.numpy().tobytes()
    if isinstance(part, Mapping):
        return tuple((key, identify(value)) for key, value in part.items())
    if isinstance(part, (tuple, list)):
        return type(part), tuple(map(identify, part))
    if isinstance(part, partial):
        return partial, identify((part.func, part.args, part.keywords))
    if isinstance(part, (FunctionType, BuiltinFunctionType, type)) and str(part.__module__).startswith(OURS):
        held = [cell.cell_contents for cell in getattr(part, "__closure__", None) or ()]
        held += getattr(part, "__defaults__", None) or ()
        return part.__module__, part.__qualname__, tuple(map(identify, held))
    if type(part).__module__.startswith("metarun."):
        return type(part), identify(getattr(part, "__dict__", {}))
    raise Foreign(f"{type(part).__module__}.{type(part).__qualname__}")


def is_known(part: Any) -> bool:
    """Whether `identify` knows all of it."""
    try:
        identify(part)
    except Foreign:
        return False
    return True


def compile_function(
    function: Callable[..., Any],
    placement: Placement,
    params: Params,
    parts: Any = None,
    otherwise: Callable[[], Callable[..., Any]] | None = None,
) -> Callable[..., Any]:
    """Return the function, compiled at its first call. The cache folder keeps the result for later runs.

    On a CPU it is compiled ahead of time (ahead_of_time.py), or by `torch.compile` if it cannot be traced as a whole or
    if one of its `parts` is not metarun's own: that compiler notices where Python's values change. `parts` are all that
    decides the function, which is then traced once in a process; None: not known. `otherwise` makes what stands in for
    `torch.compile`. A network of convolutions that is compiled without being asked for stays as it is instead.
    """
    folder = cache_folder() / COMPILED
    chosen = os.environ.get(VARIABLE)
    # torch sets it too, to a folder of its own, when parts of its compiler are imported.
    torchs = sys.modules.get("torch._inductor.runtime.cache_dir_utils")
    if chosen is None or (torchs and chosen == torchs.default_cache_dir()):
        os.environ[VARIABLE] = chosen = str(folder)
    if chosen == str(folder):
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

    def as_pieces() -> Callable[..., Any]:
        if placement.compile == "auto" and not is_connected(params):
            return function
        return torch.compile(function, dynamic=False, options=options | {"cpp_wrapper": True})

    try:
        identity = None if parts is None else identify(parts)
    except Foreign:
        return as_pieces()
    return AheadOfTime(function, Path(chosen), options, otherwise=otherwise or as_pieces, identity=identity)
