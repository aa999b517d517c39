"""A process for one side of one case: it checks, builds, warms up and times its own steps, as it is told over a pipe.

One process each, because the libraries would share threads, allocators and global settings otherwise.
"""

from __future__ import annotations

import importlib
import os
import resource
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers.cases import Case
from benchmarks.peers.tasks import Side, Work

STATUS = Path("/proc/self/status")
FEW = ("train.tasks=2",)


class Order(NamedTuple):
    """What a process is for."""

    side: str  # jax-map is jax in the form map
    case: Case
    images: Path
    threads: int


def serve(pipe: Connection, order: Order) -> None:
    """Answer commands until the other end closes; a failure is an answer too."""
    limit_threads(order.threads)
    actions: dict[str, Any] = {"draw": draw, "exact": exact, "build": built, "steps": steps, "peak": peak}
    held: dict[str, Side] = {}
    while True:
        try:
            command, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, actions[command](order, held, *arguments)))
        except ImportError as error:
            pipe.send((False, f"not installed: {error.name or error}"))
        except Exception:
            pipe.send((False, traceback.format_exc()))


def limit_threads(threads: int) -> None:
    """As many cores for this process as the benchmark asks for; XLA has no other limit."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def draw(order: Order, held: dict[str, Side]) -> tuple[Work, Work]:
    """The case's tasks in float32, and the first two of them in float64."""
    from benchmarks.peers import tasks

    few = tasks.draw(order.case, order.images, order.threads, "float64", *FEW)
    return tasks.draw(order.case, order.images, order.threads), few


def exact(order: Order, held: dict[str, Side], few: Work) -> Any:
    """Loss and meta-gradient of two tasks in float64."""
    return make(order, few, "device.compile=false", *FEW).gradient()


def built(order: Order, held: dict[str, Side], work: Work) -> dict[str, Any]:
    """Build the side and take two steps: their losses, and the seconds of the first."""
    held["side"] = side = make(order, work)
    start = time.perf_counter()
    first = side.step()
    finish(order.case)
    seconds = time.perf_counter() - start
    losses = [mean(first), mean(side.step())]
    reset_peak()
    return {"losses": losses, "first_s": seconds}


def mean(losses: Any) -> float:
    import numpy as np

    return float(np.asarray(losses).mean())


def make(order: Order, work: Work, *more: str) -> Side:
    """The side for these tasks; metarun draws them itself, by the same settings and `more`."""
    name, _, form = order.side.partition("-")
    if name == "metarun":
        from benchmarks.peers import peer_metarun

        eager = ["device.compile=false"] if form == "eager" else []
        build = peer_metarun.build_module if form == "module" else peer_metarun.build
        return build(order.case, order.images, order.threads, work.dtype, *eager, *more)
    peer: Any = importlib.import_module(f"benchmarks.peers.peer_{name}")
    if name == "jax":
        return peer.build(work, form)
    prepare_torch(order.threads)
    return peer.build(work)


def prepare_torch(threads: int) -> None:
    """As metarun does: so many threads, and float32 without TF32, which torch's convolutions use unless told."""
    import torch

    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def steps(order: Order, held: dict[str, Side], seconds: float, most: int) -> list[float]:
    """Seconds of each of as many steps as take so long, at least one and at most so many."""
    taken: list[float] = []
    while not taken or (sum(taken) < seconds and len(taken) < most):
        start = time.perf_counter()
        held["side"].step()
        finish(order.case)
        taken.append(time.perf_counter() - start)
    return taken


def finish(case: Case) -> None:
    """Wait until a GPU has done what it was given."""
    if case.device == "cuda":
        import torch

        torch.cuda.synchronize()


def reset_peak() -> None:
    """Let the kernel count the peak of resident memory anew, where it can (Linux)."""
    if STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak(order: Order, held: dict[str, Side]) -> float:
    """The most resident memory since then, MB; on a GPU the most that torch had allocated there."""
    if order.case.device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1024**2
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
