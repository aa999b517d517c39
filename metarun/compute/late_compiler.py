"""Import torch's compiler only where something is compiled: it takes three quarters as long as torch itself."""

from __future__ import annotations

import contextlib
import importlib
import sys
from types import ModuleType
from typing import Any

import torch

SHAPES = "torch.fx.experimental.symbolic_shapes"


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


class _Shapes(ModuleType):
    """What `torch.fx.experimental.symbolic_shapes` is until more of it is needed than the two functions by which
    `torch.autograd.grad` compares shapes: the module itself imports sympy."""

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":  # which an import asks for
            raise AttributeError(name)
        if sys.modules.get(SHAPES) is self:
            del sys.modules[SHAPES]
        return getattr(importlib.import_module(SHAPES), name)

    def sym_eq(self, one: Any, other: Any) -> Any:
        if _is_plain(one) and _is_plain(other):
            return tuple(one) == tuple(other)
        return self.__getattr__("sym_eq")(one, other)

    def expect_true(self, found: Any) -> bool:
        return found if isinstance(found, bool) else self.__getattr__("expect_true")(found)


def _is_plain(shape: Any) -> bool:
    return isinstance(shape, tuple) and all(type(size) is int for size in shape)


def delay_compiler() -> None:
    """Let `torch.func` differentiate without importing the compiler."""
    if "torch._dynamo" not in sys.modules:
        torch._dynamo = _Compiler()  # type: ignore[assignment]
    if SHAPES not in sys.modules:
        sys.modules[SHAPES] = _Shapes(SHAPES)
