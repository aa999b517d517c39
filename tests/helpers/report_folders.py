"""Run folders for the tests of the report: written by hand, whole or broken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from metarun.report.read.runs import Run, read_run

CONFIG: dict[str, Any] = {
    "job": "train",
    "seed": 0,
    "choices": {"algo": "maml", "data": "sinusoid", "model": "mlp", "reg": "none"},
    "algo": {"_target_": "metarun.algorithms.maml.MAML", "inner_lr": 0.01, "inner_steps": 2, "test_inner_steps": 3},
    "data": {"_target_": "metarun.data.sinusoid.Sinusoid", "ways": 1, "shots": 10, "queries": 10, "test_queries": 100},
    "model": {"norm": "none"},
    "train": {"steps": 40, "tasks": 5, "log_every": 10},
    "device": {"name": "cpu"},
}
SUMMARY: dict[str, Any] = {
    "status": "completed",
    "algo": "maml",
    "data": "sinusoid",
    "kind": "regression",
    "ways": 1,
    "shots": 10,
    "queries": 10,
    "test_queries": 100,
    "train_ways": 1,
    "train_shots": 10,
    "split": "sampled",
    "split_sha256": None,
    "norm": "none",
    "seed": 0,
    "metric": "mse",
    "device": "cpu",
    "versions": {"python": "3.11", "torch": "2.13"},
    "mean": 0.5,
    "ci95": 0.1,
    "n_tasks": 4,
    "headline_step": 3,
    "curve": [{"step": k, "mean": 2.0 / (k + 1), "ci95": 0.1, "loss": 2.0 / (k + 1)} for k in range(4)],
    "episodes_sha256": "0123456789abcdef",
    "reason": "",
    "diverged": False,
    "steps_done": 40,
    "tasks_seen": 200,
    "best_step": 40,
    "val_error": 0.6,
    "seconds": 8.0,
    "tasks_per_second": 25.0,
    "peak_memory_mb": 300.0,
    "alarms": {},
}
SCORES = [[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0], [0.5, 0.4, 0.3, 0.2], [0.2, 0.4, 0.6, 0.8]]  # [steps, tasks]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


def train_record(step: int, **more: Any) -> dict[str, Any]:
    shrinking = 1 / (1 + step / 10)
    values = {"loss": 2 * shrinking, "mse": 2 * shrinking, "query_loss/0": 3 * shrinking, "query_loss/1": 2 * shrinking}
    values |= {"grad_norm": 1 + shrinking, "grad_norm/body": 1.0, "grad_norm/head": shrinking, "grad_snr": -shrinking}
    values |= {"adaptation_gain": shrinking, "contraction": 0.9, "lr": 0.001}
    return {"kind": "train", "step": step, **values, **more}


def records(steps: Sequence[int] = (10, 20, 30, 40)) -> list[dict[str, Any]]:
    """A training record and a validation at each of the steps."""
    found = [train_record(step) for step in steps]
    return found + [{"kind": "val", "step": s, "mean": 4.0 / s, "ci95": 0.01, "improved": True} for s in steps]


def write_run(
    folder: Path,
    summary: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    lines: Sequence[dict[str, Any]] | None = None,
    scores: Sequence[Sequence[float]] | None = SCORES,
    seconds: float = 8.0,
) -> Path:
    """A run folder like one that metarun leaves; `summary` and `config` (by dotted name) replace single entries."""
    folder.mkdir(parents=True, exist_ok=True)
    whole, lines = SUMMARY | (summary or {}), records() if lines is None else lines
    (folder / "config.yaml").write_text(yaml.safe_dump(replaced(CONFIG, config or {})))
    (folder / "summary.json").write_text(json.dumps(whole))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    last = max([1, *(line["step"] for line in lines)])
    clock = [{"kind": r["kind"], "step": r["step"], "seconds": seconds * r["step"] / last} for r in lines]
    (folder / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in clock))
    if scores is not None:
        per_task = {"episodes_sha256": whole["episodes_sha256"], "steps": list(range(len(scores))), "scores": scores}
        (folder / "test.json").write_text(json.dumps(per_task))
    return folder


def replaced(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested settings with some of them, named with dots, changed."""
    new = json.loads(json.dumps(config))
    for key, value in changes.items():
        *groups, name = key.split(".")
        inner = new
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = value
    return new


def write_analysis(run: Path, name: str = "sensitivity") -> Path:
    """What `job=analyze` leaves."""
    folder = run / "analyses" / name
    folder.mkdir(parents=True)
    results = {"settings": {}, "summary": {"message": "the tuned rate is best", "robustness": 0.25}, "rows": []}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "results.csv").write_text(
        "rate,steps,mean,note\n0.01,1,0.123456789,tuned\n0.02,1,0.2,<b>wide</b>\n0.04\n"
    )
    (folder / "figure.png").write_bytes(PNG)
    return folder


def read_runs(folder: Path, *changes: dict[str, Any]) -> list[Run]:
    """A run for each set of changes: entries with a dot or `seed`, `job` are settings, all else is of the summary."""
    found = []
    for at, change in enumerate(changes):
        config = {k: v for k, v in change.items() if "." in k or k in ("seed", "job")}
        rest = {k: v for k, v in change.items() if k not in ("scores", "seconds", "lines") and "." not in k}
        files = {k: change[k] for k in ("scores", "seconds", "lines") if k in change}
        found.append(read_run(write_run(folder / str(at), rest, config, **files)))
    return found
