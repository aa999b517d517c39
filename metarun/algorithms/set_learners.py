"""What the learners that encode a context set check of their settings."""

from __future__ import annotations

from typing import Any

from metarun.errors import UserError, require

ROW_NORMS = ("none", "layer")
"""Those that normalise each row by itself: sets are padded, and a prediction depends on no other target. Groups do so
too, but have a single unit each in a network of eight."""


def check_network(network: Any) -> Any:
    """The network itself, unless rows of a batch would depend on each other in it."""
    norm = getattr(network, "norm", "none")
    if norm not in ROW_NORMS:
        needed = f"must be one of {', '.join(ROW_NORMS)}: this algorithm's sets are padded, and targets independent"
        raise UserError(f"model.norm={norm}: {needed}")
    return network


def check_sizes(sigma_floor: float, **sizes: int) -> None:
    require(0 < sigma_floor < 1, "sigma_floor", sigma_floor, "must be above 0 and below 1")
    for name, size in sizes.items():
        require(size >= 1, name, size, "must be at least 1")
