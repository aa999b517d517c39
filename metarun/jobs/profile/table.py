"""A profile as tables on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

KINDS = ("forward", "backward", "rest")
LEAST = 0.005  # share of the smallest group of operators that is shown


def show(found: dict[str, Any], console: Console, folder: Path) -> None:
    """All of it, with how to open the trace."""

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False, markup=False)

    say(headline(found))
    console.print(phases_table(found["phases"]))
    say(f"a step: {ms(found['step_milliseconds'])} ms, {found['tasks_per_second']:.4g} tasks/s; {outside(found)}")
    say("")
    if found["parts"]:
        console.print(parts_table(found["parts"]))
    else:
        say("the meta-gradient is compiled, one region without parts; device.compile=off shows an uncompiled one's")
    console.print(operators_table(found["operators"], found["compiled"]))
    for line in (traced(found["traced"]), memory(found["memory"]), arithmetic(found["arithmetic"])):
        say(line)
    say(f"profile: {folder / 'profile.json'}")
    if found["trace"]:
        say(f"trace: {folder / found['trace']} (open it at https://ui.perfetto.dev or in chrome://tracing)")


def headline(found: dict[str, Any]) -> str:
    chunk = f", {found['chunk']} at a time" if found["chunk"] else ""
    where = f"{found['device']}, {found['threads']} threads, {found['precision']}"
    run = "compiled" if found["compiled"] else "not compiled"
    return (
        f"metarun: {found['algo']} on {found['data']}, {found['tasks']} tasks of {found['episode']}{chunk}; "
        f"{where}, {run}, diagnostics={found['diagnostics']}"
    )


def outside(found: dict[str, Any]) -> str:
    return f"{per_cent(found['outside_share'])} of it outside of the meta-gradient (validation and probes aside)"


def phases_table(phases: list[dict[str, Any]]) -> Table:
    table = _table("phase", "ms each", "every", "ms a step", "share")
    for phase in phases:
        figures = ms(phase["milliseconds"]), str(phase["every"]), ms(phase["milliseconds_per_step"])
        table.add_row(phase["name"], *figures, per_cent(phase["share"]))
    return table


def parts_table(parts: list[dict[str, Any]]) -> Table:
    """Of the meta-gradient, ms each."""
    table = _table("inside of the meta-gradient, ms", *KINDS, "share")
    for part in parts:
        table.add_row(part["name"], *(ms(part[f"{kind}_milliseconds"]) for kind in KINDS), per_cent(part["share"]))
    return table


def operators_table(operators: list[dict[str, Any]], compiled: bool) -> Table:
    table = _table("its operators", "calls", "ms", "share")
    for group in operators:
        if group["share"] >= LEAST:
            name = "compiled code" if compiled and not group["calls"] else group["name"]
            calls = f"{group['calls']:.0f}" if group["calls"] else ""
            table.add_row(name, calls, ms(group["milliseconds"]), per_cent(group["share"]))
    return table


def traced(facts: dict[str, Any]) -> str:
    where = "time of kernels on the device" if facts["on"] == "cuda" else "own time on the main thread"
    return f"shares inside: {where}, traced, which takes {facts['slowdown']:.2f} times as long"


def memory(facts: dict[str, Any]) -> str:
    parts = (
        [] if facts["peak_bytes"] is None else [f"tensors of a meta-gradient {mib(facts['peak_bytes'])} at their most"]
    )
    parts[-1:] = [f"{p} (in {facts['peak_at']})" if facts["peak_at"] else p for p in parts[-1:]]
    parts += [f"the process {mib(facts['process_peak_bytes'])}"] if facts["process_peak_bytes"] else []
    return "memory: " + "; ".join(parts or ["not known on this device"])


def arithmetic(facts: dict[str, Any]) -> str:
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


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table
