"""device.deterministic=portable: the same bits on every x86-64 processor with AVX2, by what all of them can do.

torch, MKL, NumPy and OpenBLAS choose instructions by the processor, and sums of other widths round differently. Their
environment variables, which count before they are loaded, pin the choice. This module must not import any of them.
"""

from __future__ import annotations

import os
import platform
import sys

from metarun.config.schema import PORTABLE, DeviceConfig, compile_choice
from metarun.errors import SettingError

ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels; below AVX2 they call libm, which differs between systems
    "MKL_CBWR": "COMPATIBLE",  # matrix products: the one branch that MKL has for processors of every maker
    "OPENBLAS_CORETYPE": "Haswell",  # NumPy's
    # NumPy's kernels for more than x86-64-v2: by their names since NumPy 2.4, and before.
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX "
    "AVX512_CNL",
}


def check_portable(device: DeviceConfig) -> None:
    """Raise `SettingError` for settings with which the bits depend on the machine."""
    needed = f"device.deterministic={PORTABLE} needs"
    if device.name not in ("auto", "cpu"):
        raise SettingError("device.name", device.name, f"{needed} device=cpu")
    if compile_choice(device) is True:
        raise SettingError("device.compile", device.compile, f"{needed} off: a compiler reads the processor")
    if device.threads not in (None, 1):
        raise SettingError("device.threads", device.threads, f"{needed} 1: more threads add in another order")
    if device.chunk_size not in ("auto", 1):
        raise SettingError("device.chunk_size", device.chunk_size, f"{needed} 1: batched products add in another order")
    if platform.machine().lower() not in ("x86_64", "amd64"):
        raise SettingError("device.deterministic", PORTABLE, f"is for x86-64 processors; this is {platform.machine()}")


def pin_arithmetic() -> None:
    """Set the variables. Raise `SettingError` if torch or NumPy has been loaded without them."""
    lacking = {name: value for name, value in ENVIRONMENT.items() if os.environ.get(name) != value}
    loaded = [name for name in ("torch", "numpy") if name in sys.modules]
    if lacking and loaded:
        needed = " ".join(f"{name}={value!r}" for name, value in lacking.items())
        raise SettingError(
            "device.deterministic", PORTABLE, f"{loaded[0]} is loaded already; start the process with {needed}"
        )
    os.environ.update(lacking)
