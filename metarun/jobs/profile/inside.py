"""The inside of the meta-gradient: a few steps under torch's profiler, and memory at its most."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from metarun.jobs.profile.marks import Loop, marked_loop, region, regions_of
from metarun.jobs.profile.parts import Group, Part, groups, kind_of, part_of, parts
from metarun.jobs.profile.phases import never_logging
from metarun.jobs.profile.trace import ROOT, Event, device_times, host_events, memory_peak, read_trace, spent_in
from metarun.training.meta_gradient import MetaGradient, build_meta_gradient
from metarun.training.run import Observer, State, Trainer

TRACE = "trace.json.gz"
STEPS = 2


class Inside(NamedTuple):
    """What a trace says of one meta-gradient."""

    parts: list[Part]  # in shares; empty of a compiled one
    groups: list[Group]
    peak: int | None  # bytes
    peak_at: str | None
    seconds: float  # while it was traced
    on: str  # whose time it is: cpu, cuda


def inside_of(
    trainer: Trainer,
    state: State,
    observer: Observer,
    compiled: Callable[..., MetaGradient] | None,
    folder: Path | None,
) -> Inside:
    """Trace some steps; the trace stays in `folder`. A compiled meta-gradient is one region: it has no parts."""
    meta_gradient = compiled or build_meta_gradient(
        dataclasses.replace(trainer, algorithm=regions_of(trainer.algorithm))
    )
    loop = marked_loop(never_logging(trainer), state, meta_gradient, observer, region)
    with tempfile.TemporaryDirectory() as scratch:
        path = (folder or Path(scratch)) / TRACE
        traced(loop, trainer.placement.device, path)
        return described(read_trace(path), compiled is not None)


def traced(loop: Loop, device: torch.device, path: Path) -> None:
    """Write the trace of a few steps, after one that is not in it."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    loop.step()
    profiler = profile(activities=activities, profile_memory=True)
    with silence():
        profiler.start()
    for _ in range(STEPS):
        loop.step()
    with silence():
        profiler.stop()
    profiler.export_chrome_trace(str(path))


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing on stderr: torch 2.13 tells there that its profiler starts and stops, and cannot be asked not to."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def described(trace: list[dict[str, Any]], compiled: bool) -> Inside:
    spent, roots = spent_in(trace), [e for e in host_events(trace) if e.name == ROOT]
    peak = memory_peak(trace)
    return Inside(
        parts=[] if compiled else parts(spent),
        groups=groups(spent, len(roots)),
        peak=peak.bytes,
        peak_at=None if compiled else f"{part_of(peak.path)}, {kind_of(peak.path)}",
        seconds=_seconds(roots),
        on="cuda" if device_times(trace) else "cpu",
    )


def _seconds(events: list[Event]) -> float:
    return 1e-6 * sum(e.end - e.start for e in events) / len(events)


def peak_bytes(device: torch.device, call: Callable[[], MetaGradient]) -> int | None:
    """Of the device's memory during the call, above what was held before; None where the device does not tell."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    float(call().penalty)
    return torch.cuda.max_memory_allocated(device) - held


def resident_peak() -> int | None:
    """The most that this process ever held in memory; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest
