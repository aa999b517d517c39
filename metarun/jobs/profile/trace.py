"""The inside of the meta-gradient: a few steps under torch's profiler, by part of the algorithm and kind of operator.

The own time of an event is its time without the events that it encloses. On a CPU own times are those of the main
thread, and what Python takes between operators counts to the region that encloses it. On a GPU the time of an event is
that of the kernels that it launched.

part      the method of the algorithm that was running: `adapt` is the inner loop, others go by their own names;
          `predict` belongs to the outer objective, as does what runs in no method; `all tasks together` is batching by
          vmap, mean, penalties, the check for finite numbers. A checkpointed or multi-step meta-gradient descends
          without calling `adapt`: what runs in no method is then its inner loop and the derivative of it
kind      backward: inside of an autograd node; forward: inside of the network or the loss; rest: steps, metrics, Python
So (inner loop, backward) is the inner backward pass, (outer objective, forward) the forward pass on the queries and
(outer objective, backward) the meta backward pass, second order included.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from metarun.jobs.profile.phases import META, add_marks
from metarun.types import Algorithm

STEPS = 2
PREFIX = "metarun: "
"""How the names of regions begin in a trace."""

ROOT, TASK, FORWARD = PREFIX + META, "meta_grad", "forward"
BACKWARD = "autograd::engine::evaluate_function"
KINDS = ("forward", "backward", "rest")
INNER, OUTER, TOGETHER = "inner loop", "outer objective", "all tasks together"
DESCENT = "inner loop and its derivative"
FIXED = {INNER, OUTER, DESCENT, TOGETHER}
METHODS = {"adapt": INNER, "predict": OUTER}
NO_PARTS = (FORWARD, "inner_objective")  # these regions say what runs, or make a function that others run
SMALL = 0.01  # share below which a method of the algorithm is no line of its own

GROUPS = (
    ("fused kernels", r"cpp_fused|triton|graph_\d+|CompiledFunction"),
    ("convolution", r"conv"),
    ("matrix product", r"\b(\w*mm|matmul|bmm|baddbmm|dot|mv|linear|einsum|addmv|addr)\b"),
    ("normalisation", r"batch_norm|group_norm|layer_norm|var_mean|\bvar\b"),
    ("pooling", r"pool"),
    ("softmax and losses", r"softmax|nll_|cross_entropy|mse_loss"),
    ("indexing", r"index|gather|scatter|embedding|nonzero|take"),
    ("reductions", r"\b(sum|mean|max|amax|min|argmax|all|any|norm|linalg_vector_norm|prod|std|isfinite)\b"),
    (
        "copies and layout",
        r"copy|clone|contiguous|\bto\b|reshape|view|permute|transpose|\bt\b|expand|stride|movedim|squeeze|\bcat\b|stack"
        r"|empty|zeros|ones|fill|zero_|slice|select|split|unbind|narrow|flatten|pad|repeat|detach|alias|chunk|resize",
    ),
)
ELEMENTWISE, OVERHEAD = "elementwise", "Python and autograd"


class OwnTime(NamedTuple):
    """The own time of an event inside of the meta-gradient."""

    path: tuple[str, ...]  # the names of the events that enclose it, and its own
    microseconds: float


def region(name: str) -> record_function:
    """A mark that shows in the trace."""
    return record_function(PREFIX + name)


def mark_methods(algorithm: Algorithm) -> Algorithm:
    """The learner with a region around each of its methods, and one called `forward` around its network and loss."""
    model = add_marks(algorithm.model, dict.fromkeys(_methods(algorithm.model, private=False), FORWARD), region)
    loss = add_marks(algorithm.loss, {"__call__": FORWARD}, region)
    own = {name: name for name in _methods(algorithm, private=True)}
    return add_marks(algorithm, own, region, model=model, loss=loss)


def _methods(value: Any, private: bool) -> Iterator[str]:
    """Plain methods: a region around a generator would end before it is run."""
    for name in dir(type(value)):
        method = inspect.getattr_static(type(value), name)
        hidden = name.startswith("__") or (name.startswith("_") and not private)
        if inspect.isfunction(method) and not inspect.isgeneratorfunction(method) and not hidden:
            yield name


def record_trace(step: Callable[[], Any], device: torch.device, path: Path) -> profile:
    """Run a few steps under torch's profiler, after one that it does not see, and write its trace to `path`."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    step()
    profiler = profile(activities=activities, profile_memory=True)
    with _no_stderr():
        profiler.start()
    for _ in range(STEPS):
        step()
    with _no_stderr():
        profiler.stop()
    profiler.export_chrome_trace(str(path))
    return profiler


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """torch 2.13 writes there that its profiler starts and stops, and has no setting to leave that out."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def describe_trace(
    profiler: profile, device: torch.device, compiled: bool, descends: bool, seconds: float
) -> dict[str, Any]:
    """Parts, operators and memory of a meta-gradient that takes `seconds` when it is not traced. A compiled one has no
    parts, for it is a single region. `descends`: whether the algorithm has an inner loop."""
    recorded: Any = profiler.events()
    events = [e for e in recorded if e.device_type == DeviceType.CPU and not e.is_async]
    times, roots = collect_own_times(events), [e for e in events if e.name == ROOT]
    whole = sum(time for _, time in times) or 1.0
    shares = [OwnTime(path, time / whole) for path, time in times]
    peak, path = find_memory_peak(events, read_allocations(profiler, device))
    unmarked = DESCENT if descends and not any(part_of(path) == INNER for path, _ in times) else OUTER
    return {
        "parts": [] if compiled else tabulate_parts(shares, seconds, unmarked),
        "operators": tabulate_operators(shares, seconds, len(roots)),
        "traced": {
            "on": "cuda" if any(e.kernels for e in events) else "cpu",
            "slowdown": 1e-6 * statistics.fmean(e.time_range.elapsed_us() for e in roots) / seconds,
        },
        "memory": {"peak_bytes": peak, "peak_at": None if compiled else f"{part_of(path, unmarked)}, {kind_of(path)}"},
    }


def collect_own_times(events: list[FunctionEvent]) -> list[OwnTime]:
    """The own times of all events inside of meta-gradients: the host's, or the device's where one was at work."""
    main = next(e.thread for e in events if e.name == ROOT)
    regions = [e for e in events if e.thread == main and e.name.startswith(PREFIX)]
    on_device, found = any(e.kernels for e in events), []
    for event in events:
        path: tuple[str, ...] = (event.name,)
        parent = event.cpu_parent
        while parent:
            path, parent = (parent.name, *path), parent.cpu_parent
        if event.thread != main:
            # A GPU's backward pass runs in a thread of its own, while the main thread waits inside of a region.
            path = (*_running(regions, event.time_range.start), *path)
        if ROOT in path and (on_device or event.thread == main):
            # A region on the GPU spans kernels, and is none.
            kernels = sum(k.duration for k in event.kernels if not k.name.startswith(PREFIX))
            time = kernels if on_device else event.self_cpu_time_total
            found.append(OwnTime(path[path.index(ROOT) :], time))
    return found


def _running(events: Iterable[FunctionEvent], at: float) -> tuple[str, ...]:
    """The names of one thread's events that were running at a time, outermost first."""
    return tuple(e.name for e in events if e.time_range.start <= at < e.time_range.end)


def read_allocations(profiler: profile, device: torch.device) -> list[tuple[float, int]]:
    """Microseconds and bytes of each change of the device's memory, in the order of time."""
    results: Any = profiler.profiler and profiler.profiler.kineto_results
    kind, start = getattr(DeviceType, device.type.upper()), results.trace_start_ns()
    changes = [e for e in results.events() if e.name() == "[memory]" and e.device_type() == kind]
    return sorted((1e-3 * (e.start_ns() - start), e.nbytes()) for e in changes)


def find_memory_peak(events: list[FunctionEvent], changes: list[tuple[float, int]]) -> tuple[int, tuple[str, ...]]:
    """The largest sum of tensors alive in the first meta-gradient, above what was alive before, and what ran then."""
    root = next(e for e in events if e.name == ROOT)
    alive, most, when = 0, 0, root.time_range.start
    for at, size in changes:
        if root.time_range.start <= at <= root.time_range.end:
            alive += size
            if alive > most:
                most, when = alive, at
    return most, _running((e for e in events if e.thread == root.thread), when)


def tabulate_parts(shares: list[OwnTime], seconds: float, unmarked: str = OUTER) -> list[dict[str, Any]]:
    """The loops, other methods of the algorithm, what is done for all tasks together; in shares of the meta-gradient's
    time. `unmarked` is the part of what runs in no method, or in one that takes hardly any time."""
    parts: dict[str, dict[str, float]] = {unmarked: dict.fromkeys(KINDS, 0.0)}
    for path, share in shares:
        parts.setdefault(part_of(path, unmarked), dict.fromkeys(KINDS, 0.0))[kind_of(path)] += share
    for name in [n for n, kinds in parts.items() if n not in FIXED and sum(kinds.values()) < SMALL]:
        for kind, share in parts.pop(name).items():
            parts[unmarked][kind] += share
    own = sorted(parts.keys() - FIXED, key=lambda name: -sum(parts[name].values()))
    return [
        {
            "name": name,
            **{f"{kind}_milliseconds": 1e3 * seconds * share for kind, share in parts[name].items()},
            "share": sum(parts[name].values()),
        }
        for name in (INNER, DESCENT, OUTER, *own, TOGETHER)
        if name in parts
    ]


def part_of(path: tuple[str, ...], unmarked: str = OUTER) -> str:
    """The part of the algorithm, by the outermost method inside of a task's meta-gradient."""
    methods = [name.removeprefix(PREFIX) for name in path if name.startswith(PREFIX)]
    if TASK not in methods:
        return TOGETHER
    inside = [name for name in methods[methods.index(TASK) + 1 :] if name not in NO_PARTS]
    return METHODS.get(inside[0], inside[0].strip("_").replace("_", " ")) if inside else unmarked


def kind_of(path: tuple[str, ...]) -> str:
    """forward, backward or rest."""
    if any(name.startswith(BACKWARD) for name in path):
        return "backward"
    return "forward" if PREFIX + FORWARD in path else "rest"


def tabulate_operators(shares: list[OwnTime], seconds: float, steps: int) -> list[dict[str, Any]]:
    """The groups of operators, the longest first; an operator inside of one of its own group is no further call."""
    totals: dict[str, float] = defaultdict(float)
    calls: dict[str, float] = defaultdict(float)
    for path, share in shares:
        group = group_of(path[-1])
        totals[group] += share
        if group != OVERHEAD and (len(path) < 2 or group_of(path[-2]) != group):
            calls[group] += 1 / steps
    return [
        {"name": name, "calls": calls[name], "milliseconds": 1e3 * seconds * share, "share": share}
        for name, share in sorted(totals.items(), key=lambda item: -item[1])
    ]


@functools.cache
def group_of(name: str) -> str:
    """The group of an event: operators of torch, compiled kernels; all else is what runs between them."""
    operator = name.removeprefix("aten::")
    for group, pattern in GROUPS[: None if "::" in name and not name.startswith(BACKWARD) else 1]:
        if re.search(pattern, operator):
            return group
    return ELEMENTWISE if name.startswith("aten::") else OVERHEAD
