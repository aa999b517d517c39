"""The table of learners on the same test episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.side_by_side import SideBySide, measure
from metarun.report.read.runs import Run, read_run


def stored(folder: Path, seconds: list[float]) -> Run:
    """A run of four records, ten steps apart, with a validation of each and three test tasks of ten queries."""
    summary = {"metric": "accuracy", "ways": 5, "test_queries": 2, "steps_done": 40, "headline_step": 1}
    records = [{"kind": kind, "step": 10 * i, "mean": 0.1 * i} for i in (1, 2, 3, 4) for kind in ("train", "val")]
    timing = [{"kind": r["kind"], "step": r["step"], "seconds": seconds[r["step"] // 10 - 1]} for r in records]
    folder.mkdir()
    (folder / "config.yaml").write_text("job: train\n")
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "test.json").write_text(json.dumps({"steps": [0, 1], "scores": [[0, 0, 0], [0.3, 0.5, 1.0]]}))
    for name, lines in (("metrics", records), ("timing", timing)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_run(folder)


def test_minutes_are_those_of_a_free_core(tmp_path: Path) -> None:
    """Ten steps took 200, 1000 and 200 seconds: a third of a minute a step where nothing else ran."""
    run = stored(tmp_path / "run", [150.0, 350.0, 1350.0, 1550.0])
    kept = measure(run, run)
    assert kept["correct"] == "3 5 10"
    assert kept["free_minutes"] == pytest.approx(40 / 3, abs=0.05)
    assert kept["within"] == {"5": 10.0, "10": 30.0, "20": 40.0}


def record(algo: str, correct: str, **other: Any) -> dict[str, Any]:
    counts = [int(c) for c in correct.split()]
    size: dict[str, Any] = {"ways": 5, "shots": 1, "test_queries": 2, "episodes_sha256": "a", "seed": 0}
    return {"algo": algo, "correct": correct, "mean": sum(counts) / 10 / len(counts), "ci95": 0.1} | size | other


def test_a_difference_is_that_of_pairs() -> None:
    table = SideBySide("page.md", lambda r: True, lambda r: "5-way", lambda r: r["algo"])
    records = [record("simpleshot", "3 5 7"), record("maml", "5 7 9"), record("baseline", "1 1 1")]
    best, middle, _ = table.markdown([*records, record("reptile", "1 2 3", episodes_sha256="b")]).splitlines()[2:5]
    assert best.startswith("| 5-way | maml | 70.00 +- 10.00 | +20.00 +- 0.00 |")
    assert middle.startswith("| 5-way | simpleshot | 50.00 +- 10.00 |  |")
    assert "| 5-way | maml, seed 1 | 60.00" in table.markdown([*records, record("maml", "6 6 6", seed=1)])
    assert "| reptile | 20.00 +- 10.00 |  |" in table.markdown(
        [*records, record("reptile", "1 2 3", episodes_sha256="b")]
    )
