"""Threads of a run on a CPU: as many as `device.threads`, one for a small network, else as many as torch takes.

Where other programs keep the cores busy, every parallel loop waits for a thread that is not running. A small network
loses more by that than its short loops could gain: settings alone decide, so that a resumed run agrees.
"""

from __future__ import annotations

import torch

from metarun.config.schema import DeviceConfig
from metarun.storage import ranks
from metarun.types import Params

ONE_THREAD = 20_000
"""Weights of a fully connected network below which its loops are too short to share out."""

_before: dict[str, int] = {}


def set_threads(settings: DeviceConfig) -> None:
    """Set the threads of this process, which may have run another run before."""
    if settings.threads is not None:
        _remember()
        torch.set_num_threads(settings.threads)
    elif _before:
        torch.set_num_threads(_before.pop("count"))
    elif ranks.size() > 1:  # torchrun sets 1 by default
        torch.set_num_threads(max(1, ranks.cores() // ranks.local_size()))


def take_one_thread(settings: DeviceConfig, params: Params) -> None:
    """Take one thread for a small network, unless the settings ask for a number."""
    if settings.threads is None and is_small(params):
        _remember()
        torch.set_num_threads(1)


def is_connected(params: Params) -> bool:
    """Whether the network is fully connected: it has no convolutions."""
    return all(p.ndim <= 2 for p in params.values())


def is_small(params: Params) -> bool:
    """Whether the network is fully connected and has few weights."""
    return is_connected(params) and count_weights(params) < ONE_THREAD


def count_weights(params: Params) -> int:
    return sum(p.numel() for p in params.values())


def _remember() -> None:
    _before.setdefault("count", torch.get_num_threads())
