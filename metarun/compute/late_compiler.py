"""Import torch's compiler only where something is compiled: it takes three quarters as long as torch itself."""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import Any

import torch


class _Compiler:
    """What `torch._dynamo` is until it is imported, which then takes this place by itself.

    `torch.func` turns the compiler of backward passes off around each of its own. There is none before the import, so
    that nothing has to be turned off.
    """

    def __getattr__(self, name: str) -> Any:
        if name == "compiled_autograd" and "torch._dynamo" not in sys.modules:
            return _CompiledAutograd()
        return getattr(importlib.import_module("torch._dynamo"), name)


class _CompiledAutograd:
    _disable = contextlib.nullcontext

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("torch._dynamo.compiled_autograd"), name)


def delay_compiler() -> None:
    """Let `torch.func` differentiate without importing the compiler."""
    if "torch._dynamo" not in sys.modules:
        torch._dynamo = _Compiler()  # type: ignore[assignment]
