"""Networks as frozen values: weights are an argument, so that tasks can be batched. May import data and below."""

from metarun.models.module import from_module

__all__ = ["from_module"]
