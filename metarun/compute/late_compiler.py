"""Import torch's compiler only where something is compiled: it takes three quarters as long as torch itself."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch

COMPILER = "torch._dynamo"
SHAPES = "torch.fx.experimental.symbolic_shapes"


class _Compiler:
    """What `torch._dynamo` is until it is imported, which then takes this place by itself.

    `torch.func` turns the compiler of backward passes off around each of its own. There is none before the import, so
    that nothing has to be turned off. Nor for the functions that it is turned off for at their first call, as long as
    this stands in `sys.modules` as well (`without_compiler`).
    """

    __spec__ = None  # which an import asks for

    def __init__(self) -> None:
        self.functions: list[Any] = []  # that it is turned off for

    def __getattr__(self, name: str) -> Any:
        if name == "compiled_autograd" and not _is_imported():
            return _CompiledAutograd()
        if sys.modules.get(COMPILER) is self:
            if name == "disable":
                return self._leave
            del sys.modules[COMPILER]
        return getattr(importlib.import_module(COMPILER), name)

    def _leave(self, function: Any, recursive: bool = True, wrapping: bool = True) -> Any:
        self.functions.append(function)
        return function


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
    if COMPILER not in sys.modules:
        torch._dynamo = _Compiler()  # type: ignore[assignment]
    if SHAPES not in sys.modules:
        sys.modules[SHAPES] = _Shapes(SHAPES)


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Let torch's functions that turn the compiler off at their first call run without importing it.

    torch notes at such a function what to call from then on. Here that is the function itself, which is right as long
    as nothing is compiled; so the notes go again at the end.
    """
    if _is_imported():
        yield
        return
    stand_in = _Compiler()
    torch._dynamo = sys.modules[COMPILER] = stand_in  # type: ignore[assignment]
    try:
        yield
    finally:
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]
            torch._dynamo = _Compiler()  # type: ignore[assignment]
        for function in stand_in.functions:
            vars(function).pop("__dynamo_disable", None)


def _is_imported() -> bool:
    return isinstance(sys.modules.get(COMPILER), ModuleType)
