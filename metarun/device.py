"""Where and how the arithmetic runs: device, precision, chunking of the task axis, compilation."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from metarun.config import DeviceConfig
from metarun.errors import SettingError
from metarun.types import Batch, EpisodeSpec, Params, Task

PerTask = Callable[[Params, Task], tuple[dict[str, Tensor], dict[str, Tensor]]]

log = logging.getLogger(__name__)

CPU_ROWS_PER_CHUNK = 320
"""Rows of images that one chunk of tasks should hold on a CPU: beyond that, the activations fall out of its caches."""

CPU_PIXELS_ALONE = 70_000
"""Pixels of a task's images beyond which a CPU is quicker with one task at a time and plain convolutions. On one core
MAML with conv4-32 then takes 0.63 of the time for 80 images of 64x64, 0.35 for 100 of them; with the stride-2 conv4-64
on 80 images of 28x28 it would take 1.4 times as long."""

SMALL_MODEL = 20_000
"""Weights below which a step is bound by launching kernels, so that compiling it pays (MLP 40-40 has 1761)."""

COMPILE_PAYS_AFTER = 5_000
"""Outer steps after which the half minute that compiling takes is won back on such a model."""


@dataclass(frozen=True)
class Placement:
    """Moves tensors to the device in its precision, and decides how a function of many tasks is run."""

    device: torch.device
    dtype: torch.dtype
    chunk_size: Any  # auto, a number, None for all
    compile: bool | str  # auto, True, False

    def params(self, params: Params) -> Params:
        return {k: self.inputs(v) for k, v in params.items()}

    def inputs(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype if x.is_floating_point() else None)

    def task(self, task: Task) -> Task:
        return Task(*(Batch(self.inputs(b.x), self.inputs(b.y)) for b in task))

    def chunk(self, spec: EpisodeSpec, input_shape: tuple[int, ...]) -> int | None:
        """How many tasks `vmap` handles at once; None for all."""
        if self.chunk_size != "auto":
            return self.chunk_size
        if self.device.type != "cpu" or math.prod(input_shape) < 100:
            return None
        rows = spec.ways * (spec.shots + spec.queries)
        if rows * math.prod(input_shape[1:]) > CPU_PIXELS_ALONE:
            return 1
        return max(1, CPU_ROWS_PER_CHUNK // rows)

    def evaluation_chunk(self, spec: EpisodeSpec, input_shape: tuple[int, ...]) -> int | None:
        """The same where no gradient of the queries is needed: one task at a time is best for many images on a CPU."""
        chunk = self.chunk(spec, input_shape)
        many = chunk is not None and spec.ways * (spec.shots + spec.queries) >= 40
        return 1 if many and self.chunk_size == "auto" else chunk

    def compiles(self, params: Params, steps: int) -> bool:
        """Whether to compile the outer step: the settings or the size of the work ask for it, and a compiler is there.

        Decided by settings only, never by a clock: a resumed run must come to the same answer.
        """
        small = sum(p.numel() for p in params.values()) < SMALL_MODEL
        pays = small and steps >= COMPILE_PAYS_AFTER and self.device.type == "cpu"
        if self.compile is False or (self.compile == "auto" and not pays):
            return False
        if self.device.type == "cpu" and not any(shutil.which(c) for c in ("g++", "clang++", "cl")):
            log.warning("device.compile=%s: no C++ compiler found, running uncompiled", self.compile)
            return False
        return True


def over_tasks(function: PerTask, count: int, chunk: int | None) -> PerTask:
    """A function of (params, one task) as one of (params, `count` tasks), all its results with a leading T axis.

    With chunks of one task nothing is batched by vmap: convolutions then stay plain ones, which on a CPU are two to
    five times as fast when a task has many images.
    """
    if count > 1 and chunk != 1:
        return vmap(function, in_dims=(None, 0), chunk_size=chunk)

    def one_by_one(params: Params, tasks: Task) -> Any:
        params = {k: channels_last(v) for k, v in params.items()}
        done = [function(params, Task(*(Batch(channels_last(b.x[i]), b.y[i]) for b in tasks))) for i in range(count)]
        return tuple(
            {k: torch.stack([tree[k] for tree in trees]) for k in trees[0]} for trees in zip(*done, strict=True)
        )

    return one_by_one


def channels_last(x: Tensor) -> Tensor:
    """Images and convolution weights in the memory order that a CPU's convolutions are fastest in."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def place(settings: DeviceConfig) -> Placement:
    """Apply the process-wide settings and choose the device; `SettingError` when it is not there."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(settings.deterministic)
    name = _available() if settings.name == "auto" else settings.name
    missing = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if missing.get(name):
        raise SettingError("device.name", name, f"this machine has none; choices: cpu, auto (here {_available()})")
    if name == "mps" and settings.precision == "float64":
        raise SettingError("device.precision", "float64", "mps has no float64; choices: float32")
    dtype = getattr(torch, settings.precision)
    return Placement(torch.device(name), dtype, settings.chunk_size, settings.compile)


def _available() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
