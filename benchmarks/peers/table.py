"""What was measured, as lines of text and as a JSON file with the machine's facts."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from metarun.jobs.summary import processor

PACKAGES = ("metarun", "torch", "numpy", "higher", "torchopt", "jax", "jaxlib", "optax")
SIDES = ("higher", "torchopt", "jax", "loop", "metarun-eager", "metarun-module")
HEADER = f"{'':14} {'ms a step':>10} {'min-max':>17} {'tasks/s':>9}  {'metarun is':>10} {'min-max':>13} {'peak MB':>8}"


def machine(threads: int, device: str = "cpu") -> dict[str, Any]:
    """What a figure depends on beside the code."""
    return {
        "processor": processor(),
        "gpu": gpu() if device == "cuda" else None,
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := installed(name))},
    }


def gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device here"


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def lines(result: dict[str, Any]) -> list[str]:
    """A case as text."""
    rows = [row(side, found, result["tasks"]) for side, found in result["sides"].items()]
    return [f"{result['title']} [{result['case']}]", HEADER, *rows, ""]


def row(side: str, found: dict[str, Any], tasks: int) -> str:
    if "why" in found:
        return f"{side:14} {found['why']}"
    step, ratio = found["step_s"], found["metarun_is_faster_by"]
    times = f"{1e3 * step['median']:10.2f} {between(1e3 * step['min'], 1e3 * step['max']):>17}"
    rates = f"{tasks / step['median']:9.0f}  {ratio['median']:9.2f}x {between(ratio['min'], ratio['max']):>13}"
    return f"{side:14} {times} {rates} {found['peak_mb']:8.0f}"


def markdown(run: dict[str, Any]) -> list[str]:
    """A run's cases as a table: metarun's step, and how many times as long the others take."""
    others = [side for side in SIDES if any(side in result["sides"] for result in run["results"])]
    head = ["work", "metarun, ms", "tasks/s", "MB", *others]
    rule = ["---"] * len(head)
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *(cells_of(r, others) for r in run["results"]))]


def cells_of(result: dict[str, Any], others: list[str]) -> list[str]:
    own = result["sides"]["metarun"]
    step = own["step_s"]["median"]
    numbers = [three_digits(1e3 * step), three_digits(result["tasks"] / step), f"{own['peak_mb']:.0f}"]
    return [result["title"], *numbers, *(ratio_of(result["sides"].get(side)) for side in others)]


def ratio_of(found: dict[str, Any] | None) -> str:
    if found is None or "why" in found:
        return "" if found is None else "cannot"
    ratio = found["metarun_is_faster_by"]
    return f"{three_digits(ratio['median'])}x ({three_digits(ratio['min'])}-{three_digits(ratio['max'])})"


def three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def between(low: float, high: float) -> str:
    return f"{low:.2f}-{high:.2f}" if high < 1000 else f"{low:.0f}-{high:.0f}"


def facts(about: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    where = f"{about['processor']}, {about['cores']} cores, {about['threads']} threads, {about['system']}"
    where += f", {about['gpu']}" if about.get("gpu") else ""
    return [where, f"Python {about['python']}, {versions}", ""]


def write(path: Path, about: dict[str, Any], results: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n")
