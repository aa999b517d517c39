"""docs/results.json, a record of every reproduced row, and the tables of the pages in docs/, made of nothing else.

python -m benchmarks.results makes the tables anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import measure
from benchmarks.tables import TABLES
from metarun.report.read.runs import Run

DOCS = Path(__file__).resolve().parents[1] / "docs"
RECORDS = DOCS / "results.json"
KEPT = (
    *("algo", "data", "ways", "shots", "train_ways", "train_shots", "queries", "test_queries", "split", "split_sha256"),
    *("rotations", "resize", "reward", "norm", "reg", "seed", "metric", "mean", "ci95", "n_tasks"),
    *("headline", "headline_step", "errors", "curve", "beside", "oracle", "status", "episodes_sha256", "params_sha256"),
    *("precision", "machine", "versions", "published"),
)
"""What a record takes from summary.json."""
COSTS = ("steps_done", "tasks_seen", "best_step", "seconds", "collected", "alarms")
"""And of that of the training, where the row is the test of another row's."""


def record_of(row: str, seed: int, overrides: Sequence[str], tested: Run, trained: Run) -> dict[str, Any]:
    """What the tables and a reader need of a test, with what the whole training cost."""
    summary, cost = tested.summary, trained.summary
    settings = " ".join([*([f"--seeds {seed}"] if seed else []), *overrides])
    typed = " ".join(["make reproduce", f"ROW={row}", *([f'ARGS="{settings}"'] if settings else [])])
    kept = {k: summary[k] for k in KEPT if k in summary} | {k: cost[k] for k in COSTS if k in cost}
    penalised = (summary.get("sparsity") or {}).get("penalised")
    named = {"row": row, "command": typed, "overrides": [*overrides]}
    return named | kept | {"sparsity": {"penalised": penalised}} | measure(tested, trained)


def save(record: Mapping[str, Any], path: Path) -> None:
    """Put the record in the place of an earlier one of the same row and seed, and make the tables anew."""
    others = [r for r in load(path) if (r["row"], r["seed"]) != (record["row"], record["seed"])]
    kept = sorted([*others, dict(record)], key=lambda r: (r["row"], r["seed"]))
    path.write_text(json.dumps(kept, indent=1) + "\n")
    render(path)


def load(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


def render(records: Path) -> None:
    """Replace what stands between the markers of the pages beside the records."""
    for name, table in TABLES.items():
        page = records.parent / table.page
        if not page.exists():
            continue
        start, end = f"<!-- {name}: made by benchmarks/results.py -->", f"<!-- end of {name} -->"
        block = f"{start}\n{table.markdown(load(records))}\n{end}"
        pattern = f"{re.escape(start)}.*?{re.escape(end)}"
        page.write_text(re.sub(pattern, lambda _, block=block: block, page.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    render(RECORDS)
