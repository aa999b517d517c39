"""Where and how the arithmetic runs: device, precision, chunking of the task axis. docs/devices.md has the settings."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metarun.compute.distributed import SINGLE_PROCESS, ProcessGroup, connect_processes, set_patience
from metarun.compute.late_compiler import delay_compiler
from metarun.compute.threads import set_threads
from metarun.config.schema import PORTABLE, DeviceConfig, compile_choice
from metarun.errors import SettingError
from metarun.storage import ranks
from metarun.types import Batch, EpisodeSpec, Params, Task

CPU_ROWS_PER_CHUNK = 320
"""Rows of images that one chunk of tasks should hold on a CPU: beyond that, the activations fall out of its caches."""

CPU_PIXELS_TOGETHER = 1_600_000
"""The same as pixels for networks of matrix products, whose batches are the quicker the larger; this bounds memory. On
two cores 16 tasks of 80 images of 28x28 (MAML, the stride-2 conv4-64) take 0.88 of the time of two chunks in one, and
0.71 of the time of four."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h

CPU_PIXELS_ALONE = 40_000
"""Pixels of a task's images beyond which a CPU is quicker with one task at a time and plain convolutions than with a
grouped one. On two cores MAML with the max-pool conv4-64 then takes 0.77 of the time for 80 images of 28x28, with
conv4-32 0.46 for 80 of 84x84; on 10 images of 28x28 it would take 1.4 times as long."""


@dataclass(frozen=True)
class Placement:
    """Where tensors live and in which precision, and how many tasks are computed at once."""

    device: torch.device
    dtype: torch.dtype  # of parameters and inputs
    chunk_size: Any  # auto, a number, None for all
    compile: bool | str  # auto, True, False
    memory_format: str = "auto"  # auto, contiguous, channels_last
    matmul_only: bool = False  # the network's linear maps are all matrix products
    memory_rows: int | None = None  # of the tasks of a chunk, as many as fit into memory (memory.py)
    processes: ProcessGroup = SINGLE_PROCESS  # the processes that share the tasks
    portable: bool = False  # several processes add as one does

    def move_params(self, params: Params) -> Params:
        return {k: self.move(v) for k, v in params.items()}

    def move(self, x: Tensor) -> Tensor:
        """Move a tensor to the device; floating-point tensors also change to the precision of parameters and inputs."""
        dtype = self.dtype if x.is_floating_point() else None
        if self.device.type == "cuda" and x.device.type == "cpu":
            # From ordinary memory the host would wait for all that the device still has to do.
            return x.pin_memory().to(self.device, dtype, non_blocking=True)
        return x.to(self.device, dtype)

    def move_task(self, task: Task) -> Task:
        return Task(*(Batch(self.move(b.x), self.move(b.y)) for b in task))

    def chunk(self, spec: EpisodeSpec, input_shape: tuple[int, ...]) -> int | None:
        """Return how many tasks `vmap` handles at once; None for all."""
        if self.chunk_size != "auto":
            return self.chunk_size
        rows = spec.ways * (spec.shots + spec.queries)
        limits = [] if self.memory_rows is None else [self.memory_rows // rows]
        if self.device.type == "cpu" and math.prod(input_shape) >= 100:  # images; the fastest chunk
            pixels = rows * math.prod(input_shape[1:])
            if self.matmul_only:
                limits.append(CPU_PIXELS_TOGETHER // pixels)
            else:
                limits.append(1 if pixels > CPU_PIXELS_ALONE else CPU_ROWS_PER_CHUNK // rows)
        return max(1, min(limits)) if limits else None

    def evaluation_chunk(self, spec: EpisodeSpec, input_shape: tuple[int, ...]) -> int | None:
        """Return the chunk for evaluation, which needs no gradient of the queries.

        For plain convolutions of many images on a CPU one task at a time is fastest.
        """
        chunk = self.chunk(spec, input_shape)
        many = chunk is not None and not self.matmul_only and spec.ways * (spec.shots + spec.queries) >= 40
        return 1 if many and self.chunk_size == "auto" else chunk


def make_placement(settings: DeviceConfig) -> Placement:
    """Apply the process-wide settings and choose the device; `SettingError` when it is not there."""
    portable = settings.deterministic == PORTABLE
    if portable:  # all that is auto is then the same on every machine
        settings = replace(settings, name="cpu", compile="off", threads=1, chunk_size=1)
    name = _best_device() if settings.name == "auto" else settings.name
    missing = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if missing.get(name):
        raise SettingError("device.name", name, f"this machine has none; choices: cpu, auto (here {_best_device()})")
    if name == "mps" and settings.precision == "float64":
        raise SettingError("device.precision", "float64", "mps has no float64; choices: float32, bfloat16")
    _configure_process(settings)
    set_patience(settings.rank_patience)
    if name == "cpu":
        keep_freed_memory()
    dtype = torch.float64 if settings.precision == "float64" else torch.float32  # bfloat16: see models/precision.py
    device, compiled, layout = _select_device(name), compile_choice(settings), settings.memory_format
    processes = connect_processes()
    return Placement(device, dtype, settings.chunk_size, compiled, layout, processes=processes, portable=portable)


def emulates_bfloat16(device: torch.device) -> bool:
    """Whether this is a CPU without instructions for bfloat16 products (AVX-512 BF16, AMX; ARM's)."""
    supported = getattr(getattr(torch.ops, "mkldnn", None), "_is_mkldnn_bf16_supported", lambda: True)
    return device.type == "cpu" and not supported()


def _select_device(name: str) -> torch.device:
    """The device of this process: each of several processes on a machine has a GPU of its own."""
    if name != "cuda" or ranks.size() == 1:
        return torch.device(name)
    if ranks.local_size() > torch.cuda.device_count():
        there = f"this machine has {torch.cuda.device_count()} for {ranks.local_size()} processes"
        raise SettingError("device.name", name, f"{there}; start as many, or choose device=cpu")
    torch.cuda.set_device(ranks.local_rank())
    return torch.device(name, ranks.local_rank())


def _configure_process(settings: DeviceConfig) -> None:
    """Set threads, TF32 and determinism, which belong to the process: an analysis may train several runs in one."""
    set_threads(settings)
    delay_compiler()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.tf32
    # Never on: cuDNN would choose its kernels by a clock, and a resumed run could be given others.
    torch.backends.cudnn.benchmark = False
    portable = settings.deterministic == PORTABLE
    if portable and (found := torch.backends.cpu.get_cpu_capability()) != "AVX2":
        raise SettingError("device.deterministic", PORTABLE, f"needs a processor with AVX2; torch uses {found} here")
    if portable:  # oneDNN cuts convolutions up by the sizes of the caches
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    if torch.are_deterministic_algorithms_enabled() != bool(settings.deterministic):  # setting it imports a compiler
        torch.use_deterministic_algorithms(bool(settings.deterministic))
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA is first used


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one, unless MALLOC_* variables say otherwise.

    By default it returns large blocks, and the kernel clears every page of them anew: a third of the step of a
    convolution network. Other allocators have no such settings or ignore them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
