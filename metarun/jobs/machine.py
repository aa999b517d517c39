"""What a figure of time depends on beside the code: the processor or GPU, cores and threads."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch


def machine(device: torch.device) -> dict[str, Any]:
    """For summary.json; `cores` are the machine's, `threads` those that a product of matrices runs on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"processor": processor(), "gpu": gpu, "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def processor() -> str:
    """Its name, where the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
