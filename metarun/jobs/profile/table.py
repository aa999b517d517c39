"""A profile as lines and tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from metarun.jobs.profile.trace import KINDS
from metarun.jobs.terminal import small_table

LEAST = 0.005  # share of the smallest group of operators that is shown


def render(profile: dict[str, Any], folder: Path) -> Iterator[str | Table]:
    """All of it, with how to open the trace."""
    yield describe_run(profile)
    phases = small_table("phase", "ms each", "every", "ms a step", "share")
    for row in profile["phases"]:
        times = ms(row["milliseconds"]), str(row["every"]), ms(row["milliseconds_per_step"])
        phases.add_row(row["name"], *times, per_cent(row["share"]))
    yield phases
    outside = f"{per_cent(profile['outside_share'])} of it outside of the meta-gradient (validation and probes aside)"
    yield f"a step: {ms(profile['step_milliseconds'])} ms, {profile['tasks_per_second']:.4g} tasks/s; {outside}"
    yield ""
    if profile["parts"]:
        parts = small_table("inside of the meta-gradient, ms", *KINDS, "share")
        for row in profile["parts"]:
            parts.add_row(row["name"], *(ms(row[f"{kind}_milliseconds"]) for kind in KINDS), per_cent(row["share"]))
        yield parts
    else:
        yield "the meta-gradient is compiled, one region without parts; device.compile=off shows an uncompiled one's"
    operators = small_table("its operators", "calls", "ms", "share")
    for row in profile["operators"]:
        if row["share"] >= LEAST:
            name = "compiled code" if profile["compiled"] and not row["calls"] else row["name"]
            calls = f"{row['calls']:.0f}" if row["calls"] else ""
            operators.add_row(name, calls, ms(row["milliseconds"]), per_cent(row["share"]))
    yield operators
    traced = profile["traced"]
    whose = "time of kernels on the device" if traced["on"] == "cuda" else "own time on the main thread"
    yield f"shares inside: {whose}, traced, which takes {traced['slowdown']:.2f} times as long"
    yield describe_memory(profile["memory"])
    yield describe_arithmetic(profile["arithmetic"])
    yield f"profile: {folder / 'profile.json'}"
    if profile["trace"]:
        yield f"trace: {folder / profile['trace']} (open it at https://ui.perfetto.dev or in chrome://tracing)"


def describe_run(profile: dict[str, Any]) -> str:
    chunk = f", {profile['chunk']} at a time" if profile["chunk"] else ""
    where = f"{profile['device']}, {profile['threads']} threads, {profile['precision']}"
    run = "compiled" if profile["compiled"] else "not compiled"
    return (
        f"metarun: {profile['algo']} on {profile['data']}, {profile['tasks']} tasks of {profile['episode']}{chunk}; "
        f"{where}, {run}, diagnostics={profile['diagnostics']}"
    )


def describe_memory(facts: dict[str, Any]) -> str:
    parts = []
    if facts["peak_bytes"] is not None:
        when = f" (in {facts['peak_at']})" if facts["peak_at"] else ""
        parts.append(f"tensors of a meta-gradient {mib(facts['peak_bytes'])} at their most{when}")
    if facts["process_peak_bytes"]:
        parts.append(f"the process {mib(facts['process_peak_bytes'])}")
    return f"memory: {'; '.join(parts) or 'not known on this device'}"


def describe_arithmetic(facts: dict[str, Any]) -> str:
    reached, possible = facts["gflop_per_second"], facts["matrix_product_gflop_per_second"]
    return (
        f"arithmetic: {facts['gflop']:.3g} GFLOP in convolutions and matrix products of a meta-gradient, "
        f"{reached:.3g} GFLOP/s; a large matrix product here {possible:.3g} GFLOP/s ({per_cent(facts['share'])} of it)"
    )


def ms(value: float) -> str:
    """Four digits or so, whatever the size."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.{2 if value >= 10 else 3}f}"


def per_cent(share: float) -> str:
    return f"{100 * share:.1f} %"


def mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
