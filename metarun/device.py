"""Where and how the arithmetic runs: device, precision, chunking of the task axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarun.config import DeviceConfig
from metarun.errors import SettingError
from metarun.types import Batch, EpisodeSpec, Params, Task

CPU_ROWS_PER_CHUNK = 320
"""Rows of images that one chunk of tasks should hold on a CPU: beyond that, the activations fall out of its caches."""

CPU_PIXELS_ALONE = 70_000
"""Pixels of a task's images beyond which a CPU is quicker with one task at a time and plain convolutions. On one core
MAML with conv4-32 then takes 0.63 of the time for 80 images of 64x64, 0.35 for 100 of them; with the stride-2 conv4-64
on 80 images of 28x28 it would take 1.4 times as long."""


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
