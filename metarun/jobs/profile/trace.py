"""A trace of torch's profiler, read again: whose time it was, and when most memory was held.

The Chrome trace file has events with a start and a length. Those of a thread nest, and an event's own time is its
length without what it encloses. On a CPU own times are of the main thread, what Python takes between operators counts
to the region that encloses it, and all own times together are the time of the meta-gradient. On a GPU the time of an
event is that of the kernels it launched.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from metarun.jobs.profile.marks import META, PREFIX

HOST = ("cpu_op", "user_annotation")
DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
ROOT = PREFIX + META
SLACK = 0.002  # microseconds by which rounding may let an event outlast the one that encloses it


class Event(NamedTuple):
    name: str
    start: float  # microseconds
    end: float
    thread: Any
    external: Any  # joins an operator to its kernels


class Spent(NamedTuple):
    """An event inside of the meta-gradient: the names of what encloses it, its own last, and its own microseconds."""

    path: tuple[str, ...]
    own: float


class Peak(NamedTuple):
    """The largest sum of tensors alive, above what was alive at the start."""

    bytes: int
    path: tuple[str, ...]  # what was running then


def read_trace(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)["traceEvents"]


def host_events(trace: Iterable[dict[str, Any]]) -> list[Event]:
    """Operators and regions, outer ones before what they enclose."""
    found = [_event(e) for e in trace if e.get("ph") == "X" and e.get("cat") in HOST]
    return sorted(found, key=lambda e: (e.start, -e.end))


def _event(e: dict[str, Any]) -> Event:
    external = e.get("args", {}).get("External id")
    return Event(e["name"], e["ts"], e["ts"] + e.get("dur", 0), e["tid"], external)


def nested(events: Iterable[Event]) -> Iterator[tuple[Event, tuple[str, ...], float]]:
    """Each event of one thread with the names of what encloses it, its own last, and its own time."""
    stack: list[tuple[Event, tuple[str, ...], list[float]]] = []
    for event in events:
        while stack and stack[-1][0].end <= event.start + SLACK:
            yield _closed(*stack.pop())
        if stack:
            stack[-1][2].append(event.end - event.start)
        above = stack[-1][1] if stack else ()
        stack.append((event, (*above, event.name), []))
    while stack:
        yield _closed(*stack.pop())


def _closed(event: Event, path: tuple[str, ...], inside: list[float]) -> tuple[Event, tuple[str, ...], float]:
    return event, path, max(0.0, event.end - event.start - sum(inside))


def spent_in(trace: list[dict[str, Any]]) -> list[Spent]:
    """Whose time the meta-gradients of the trace were: the host's, or the device's where one was at work."""
    events = host_events(trace)
    main = next(e.thread for e in events if e.name == ROOT)
    regions = [e for e in events if e.thread == main and e.name.startswith(PREFIX)]
    kernels = device_times(trace)
    on_device, found = bool(kernels), []
    for thread in {e.thread for e in events} if on_device else {main}:
        for event, path, own in nested(e for e in events if e.thread == thread):
            # A GPU's backward pass runs in a thread of its own, while the main thread waits inside of a region.
            whole = path if thread == main else (*enclosing(regions, event.start), *path)
            time = kernels.pop(event.external, 0.0) if on_device else own
            if ROOT in whole:
                found.append(Spent(whole[whole.index(ROOT) :], time))
    return found


def device_times(trace: Iterable[dict[str, Any]]) -> dict[Any, float]:
    """Microseconds of the kernels that each operator launched, by the number that joins them."""
    times: dict[Any, float] = {}
    for e in trace:
        if e.get("cat") in DEVICE:
            key = e.get("args", {}).get("External id")
            times[key] = times.get(key, 0.0) + e.get("dur", 0)
    return times


def enclosing(events: Iterable[Event], at: float) -> tuple[str, ...]:
    """The names of what was running at a time, outermost first, of one thread's events."""
    return tuple(e.name for e in events if e.start <= at < e.end)


def memory_peak(trace: list[dict[str, Any]]) -> Peak:
    """Of tensors in the host's memory during the meta-gradients of the trace."""
    events = host_events(trace)
    root = next(e for e in events if e.name == ROOT)
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in trace if e.get("name") == "[memory]" and _of_host(e))
    alive, most, when = 0, 0, root.start
    for at, size in changes:
        if root.start <= at <= root.end:
            alive += size
            if alive > most:
                most, when = alive, at
    return Peak(most, enclosing((e for e in events if e.thread == root.thread), when))


def _of_host(e: dict[str, Any]) -> bool:
    return e["args"].get("Device Type") == 0
