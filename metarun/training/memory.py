"""How much memory a task's meta-gradient takes, and how many tasks therefore fit at once.

    chunk = min(the fastest chunk, floor((budget - kept) / bytes of a task)), at least 1

bytes of a task: the peak allocation of one meta-gradient. It is counted on tensors of the device "meta", which have
shapes and no memory, so that it takes a fraction of a second and is the same on every machine. kept: what a step holds
beside the current chunk, parameters P with the optimizer's state and the gradients [T, P], twice while chunks are
concatenated. The budget is `device.memory_mb`, or half of the total memory of the machine (or the GPU). Free memory
does not count: a resumed run must decide as before. The program (some 0.5 GB) and kernels' workspaces come on top.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import weakref
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metarun.algorithms.differentiation import segment_length
from metarun.algorithms.objective import add_noise
from metarun.compute.device import Placement
from metarun.compute.late_compiler import without_compiler
from metarun.storage import ranks
from metarun.types import Algorithm, AlgorithmOptions, Batch, EpisodeSpec, Params, Task, optional

log = logging.getLogger(__name__)

MB = 2**20
"""As batch systems count memory."""

UNKNOWN_TOTAL = 8_000 * MB
"""The assumed memory of a machine whose system does not report it."""

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
MARGIN = 1.25
"""Factor on the count of a single task: under vmap each takes up to 1.2 times as much (a ProtoNet episode)."""

COUNTED_STEPS = 5
"""Inner steps that are counted; each further step is assumed to cost as much as the last one."""

EVALUATED_AT_ONCE = 50
"""Tasks of an evaluation in memory at once without a limit."""

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")
"""What torch's errors contain on a CPU (Linux, Windows), on a GPU, and for its own containers."""


class AllocationPeak(TorchDispatchMode):
    """Counts the bytes of all tensors created while it is active; `peak` is the largest total alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)

            def free() -> None:
                self.seen.discard(key)
                self.live -= size

            weakref.finalize(storage, free)


def peak_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """The peak bytes of the tensors that the call creates, with its results and without its arguments."""
    with without_compiler(), AllocationPeak() as count:
        function(*arguments)
    return count.peak


def task_bytes(algorithm: Algorithm, params: Params, task: Task) -> int:
    """The estimated peak bytes of one task (without T axis)."""
    steps, kept = (optional(algorithm, AlgorithmOptions, name) for name in ("inner_steps", "inner_checkpoint"))
    changed: Any = algorithm
    if kept:
        segment = min(segment_length(kept, steps), steps)
        once = _estimate_peak(replace(changed, inner_steps=segment, inner_checkpoint=segment), params, task)
        return once + (math.ceil(steps / segment) - 1) * weights_bytes(params)
    if steps <= COUNTED_STEPS or not is_dataclass(algorithm):
        return _estimate_peak(algorithm, params, task)
    fewer, last = (
        _estimate_peak(replace(changed, inner_steps=n), params, task) for n in (COUNTED_STEPS - 1, COUNTED_STEPS)
    )
    return last + (steps - COUNTED_STEPS) * max(0, last - fewer)


def weights_bytes(params: Params) -> int:
    return sum(v.numel() * v.element_size() for v in params.values())


def _estimate_peak(algorithm: Algorithm, params: Params, task: Task) -> int:
    """The peak bytes of a meta-gradient, without computing it."""
    batches = (Batch(b.x.to("meta"), b.y.to("meta")) for b in task)
    return peak_bytes(algorithm.meta_grad, {k: v.to("meta") for k, v in params.items()}, Task(*batches))


def budget(memory_mb: float | None, device: torch.device) -> int:
    """The bytes that tensors of this process may take."""
    if memory_mb is not None:
        return int(memory_mb * MB)
    sharing = 1 if device.type == "cuda" else ranks.local_size()
    return total_bytes(device) // 2 // sharing


def total_bytes(device: torch.device) -> int:
    """The total memory of the device, used or not; in a container its limit."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        physical = UNKNOWN_TOTAL
    limits = [physical]
    for path in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or no number in it ("max")
            limits.append(int(Path(path).read_text(encoding="ascii")) or physical)
    return min(limits)


def fit_chunk(
    placement: Placement,
    limit: int,
    algorithm: Algorithm,
    params: Params,
    episode: Task,
    count: int,
    spec: EpisodeSpec,
) -> Placement:
    """The placement with chunks of as many tasks as fit into `limit` bytes, where `device.chunk_size` is auto.

    `episode` is one task of `spec` with a leading axis of length 1, `count` the tasks of an outer step. Logs a warning
    if fewer fit than would be fastest.
    """
    shape = tuple(episode.support.x.shape[2:])
    if placement.chunk_size != "auto" or is_small(params, episode, algorithm, count, limit):
        return placement
    try:
        params, episode = add_noise(algorithm, params, episode, 0, 0)
        needed = task_bytes(algorithm, params, Task(*(Batch(b.x[0], b.y[0]) for b in episode)))
    except Exception as error:  # a user's algorithm may depend on values, which meta tensors do not have
        log.warning("device.chunk_size=auto: cannot estimate the memory (%s), uses the fastest chunks", error)
        return placement
    fits = count_fitting(limit - (2 * count + 4) * weights_bytes(params), needed)
    fastest = min(placement.chunk(spec, shape) or count, count)
    _warn(fits, fastest, needed, limit, algorithm)
    if fits >= max(count, EVALUATED_AT_ONCE):
        return placement
    return replace(placement, memory_rows=max(1, fits) * spec.ways * (spec.shots + spec.queries))


def count_fitting(room: int, needed: int) -> int:
    """The number of tasks that fit: several under vmap need the margin, a single one does not."""
    return max(int(room / (MARGIN * max(needed, 1))), int(needed <= room))


def is_small(params: Params, episode: Task, algorithm: Algorithm, count: int, limit: int) -> bool:
    """Whether a network on vectors is so small that nothing needs to be counted: in a fully connected one, a row and
    an inner step allocate less than 8 bytes a weight, from 16 units a layer on."""
    x = episode.support.x
    rows = x.shape[1] + episode.query.x.shape[1]
    weights = sum(v.numel() for v in params.values())
    return (
        x.ndim == 3
        and 8 * weights * rows * count * (optional(algorithm, AlgorithmOptions, "inner_steps") + 1) < limit / 4
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory ran out; on a CPU torch raises a plain RuntimeError."""
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or (isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY))


def _warn(fits: int, fastest: int, needed: int, limit: int, algorithm: Algorithm) -> None:
    size, allowed = (f"{math.ceil(n / MB)} MB" for n in (needed, limit))
    if fits < 1:
        less = (
            "; algo.inner_checkpoint=1 needs less"
            if optional(algorithm, AlgorithmOptions, "inner_checkpoint") is False
            else ""
        )
        log.warning("device.memory_mb: one task alone takes about %s, and the limit is %s%s", size, allowed, less)
    elif fits < fastest:
        log.warning(
            "device.chunk_size=auto: %d tasks at once, not %d: one takes about %s of %s", fits, fastest, size, allowed
        )
