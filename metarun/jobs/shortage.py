"""Out of memory: how to tell it from other errors, and which setting needs less."""

from __future__ import annotations

import torch

from metarun.training.experiment import Experiment

SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")
"""What torch says on a CPU (Linux, Windows), on a GPU, and of its own containers."""


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what the error means; on a CPU torch raises a plain RuntimeError."""
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS))


def advice(experiment: Experiment) -> str:
    """The setting to lower: tasks at once first, for that changes no result but by rounding."""
    tasks = experiment.config.train.tasks
    chunk = experiment.placement.chunk(experiment.train_spec, experiment.dataset.input_shape()) or tasks
    at_once = min(chunk, tasks)
    if at_once > 1:
        return (
            f"out of memory with {at_once} tasks at once: device.chunk_size={at_once // 2} takes half of it, "
            "device.memory_mb=NUMBER as many tasks as fit"
        )
    fewer = "algo.inner_checkpoint=1 or " if getattr(experiment.algorithm, "inner_checkpoint", None) is False else ""
    return (
        f"out of memory with one task at once: {fewer}a lower data.queries, algo.inner_steps or model size needs less"
    )
