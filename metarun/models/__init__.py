"""Networks as frozen values: weights are an argument, so that tasks can be batched. May import data and below."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metarun.models.module import from_module

__all__ = ["from_module"]


def __getattr__(name: str) -> Any:
    """Imported when it is used, since most runs use none of it."""
    if name == "from_module":
        return import_module("metarun.models.module").from_module
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
