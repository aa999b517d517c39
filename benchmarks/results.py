"""docs/results.json, a record of every reproduced row, and the tables of docs/results.md, made of nothing else.

python -m benchmarks.results makes the tables anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metarun.published import compared

DOCS = Path(__file__).resolve().parents[1] / "docs"
RECORDS, PAGE = DOCS / "results.json", DOCS / "results.md"
KEPT = (
    *("algo", "data", "ways", "shots", "train_ways", "train_shots", "queries", "test_queries", "split", "split_sha256"),
    *("rotations", "resize", "norm", "seed", "metric", "mean", "ci95", "n_tasks", "headline_step", "curve", "status"),
    *("episodes_sha256", "params_sha256", "steps_done", "tasks_seen", "best_step", "seconds", "machine", "versions"),
    *("published",),
)
"""What a record takes from summary.json."""

STEPS = (0, 1, 5, 10)
SHORT = 8  # digits of a hash
TABLES = {
    "Omniglot": (
        "experiment",
        "seed",
        "test accuracy, %",
        "published",
        "verdict",
        "goal",
        *("outer steps x tasks",),
        "minutes",
        "test tasks x queries",
        "norm",
        "split",
        "episodes",
    ),
    "Sinusoids": (
        "experiment",
        "seed",
        *(f"MSE after {k}" for k in STEPS),
        "published",
        "outer steps x tasks",
        "minutes",
    ),
}


COSTS = ("steps_done", "tasks_seen", "seconds")


def record_of(
    row: str, seed: int, overrides: Sequence[str], summary: Mapping[str, Any], trained: Mapping[str, Any]
) -> dict[str, Any]:
    """The part of a summary that the tables and a reader need, with what the whole training cost."""
    typed = " ".join(["make reproduce", f"ROW={row}", *([f'ARGS="--seeds {seed}"'] if seed else [])])
    return {"row": row, "command": typed, "overrides": [*overrides], **{k: summary.get(k) for k in KEPT}} | {
        k: trained.get(k) for k in COSTS
    }


def save(record: Mapping[str, Any], path: Path) -> None:
    """Put the record in the place of an earlier one of the same row and seed, and make the tables anew."""
    others = [r for r in load(path) if (r["row"], r["seed"]) != (record["row"], record["seed"])]
    kept = sorted([*others, dict(record)], key=lambda r: (r["row"], r["seed"]))
    path.write_text(json.dumps(kept, indent=1) + "\n")
    render(path, path.with_suffix(".md"))


def load(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


def render(records: Path, page: Path) -> None:
    """Replace what stands between the page's markers."""
    text = page.read_text()
    for name in TABLES:
        start, end = f"<!-- {name}: made by benchmarks/results.py -->", f"<!-- end of {name} -->"
        block = f"{start}\n{table(name, load(records))}\n{end}"
        text = re.sub(f"{re.escape(start)}.*?{re.escape(end)}", lambda _, block=block: block, text, flags=re.DOTALL)
    page.write_text(text)


def table(name: str, records: Sequence[Mapping[str, Any]]) -> str:
    """The Markdown table of the records that belong to it."""
    columns = TABLES[name]
    rows = [r for r in records if (r["data"] == "sinusoid") == (name == "Sinusoids")]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells(name, r))} |" for r in rows)])


def cells(name: str, r: Mapping[str, Any]) -> list[str]:
    cost = [f"{r['steps_done']} x {r['tasks_seen'] // max(r['steps_done'], 1)}", f"{r['seconds'] / 60:.1f}"]
    if name == "Sinusoids":
        return [r["row"], str(r["seed"]), *(after(r, k) for k in STEPS), printed(r), *cost]
    verdicts = ", ".join(c.verdict for c in compared(r["published"], r))
    return [
        *(r["row"], str(r["seed"]), f"{100 * r['mean']:.2f} +- {100 * r['ci95']:.2f}", printed(r), verdicts, goal(r)),
        *(*cost, f"{r['n_tasks']} x {r['test_queries']}", str(r["norm"])),
        *(f"{r['split']} {r['split_sha256'][:SHORT]}", r["episodes_sha256"][:SHORT]),
    ]


def after(r: Mapping[str, Any], step: int) -> str:
    found = [row for row in r["curve"] if row["step"] == step]
    if not found or not found[0]["mean"]:
        return "not finite" if found else ""
    return f"{found[0]['mean']:.3f} +- {found[0]['ci95']:.3f}"


def printed(r: Mapping[str, Any]) -> str:
    """The paper's figure."""
    published = r["published"]
    if published["value"] is None:
        return " / ".join(f"{v:g}" for v in published["values"])
    return f"{published['value']:g}" + (f" +- {published['ci95']:g}" if published["ci95"] else "")


def goal(r: Mapping[str, Any]) -> str:
    aim = r["published"]["goal"]
    return "" if aim is None else f"{aim:g}: {'reached' if 100 * r['mean'] >= aim else 'missed'}"


if __name__ == "__main__":
    render(RECORDS, PAGE)
