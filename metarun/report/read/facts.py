"""What a run is, what it reached and what it cost, looked up in its summary or, failing that, in its settings.

Inner gradient evaluations are those of the summary's convergence budget. Where it does not count them: outer steps x
tasks of a step x `algo.inner_steps`, without Hessian products (iMAML's conjugate gradient, MAML's outer gradient).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from metarun.report.read.files import Record
from metarun.report.read.runs import Run
from metarun.storage.text import display_scale, is_number


class Point(NamedTuple):
    """One validation: a figure with its interval, and what had been spent by then."""

    step: int
    mean: float
    half: float
    seconds: float
    inner_gradients: float


def setting(run: Run, key: str) -> Any:
    """A setting by its dotted name, or None."""
    return looked_up(run.config, key)


def looked_up(values: Mapping[str, Any], key: str) -> Any:
    """A nested value by its dotted name, or None."""
    value: Any = values
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def component(run: Run, group: str) -> str:
    """The name of the run's algorithm, data set, model ...: as chosen, or as the class is called."""
    chosen = run.summary.get(group) or setting(run, f"choices.{group}")
    target = setting(run, f"{group}._target_")
    return str(chosen or (str(target).rpartition(".")[2] if target else "unknown"))


def episode_size(run: Run, prefix: str = "") -> str:
    """`5-way 1-shot`, or `10-shot` for regression; `prefix` "train_" for what training used."""
    ways, shots = (_summed_up(run, prefix, key) for key in ("ways", "shots"))
    if shots is None:
        return "unknown size"
    if run.summary.get("kind") == "control":
        return f"{shots} explored trajectories"
    classes = run.summary.get("kind") == "classification" or metric_of(run) == "accuracy"
    return f"{ways}-way {shots}-shot" if classes and ways is not None else f"{shots}-shot"


def _summed_up(run: Run, prefix: str, key: str) -> Any:
    found = run.summary.get(prefix + key)
    return setting(run, f"data.{key}") if found is None else found


def metric_of(run: Run) -> str:
    """The name of the reported figure."""
    named = run.summary.get("metric")
    if named:
        return str(named)
    logged = {key for record in run.of("train")[:1] for key in record}
    return next((name for name in ("accuracy", "log_likelihood", "return", "mse") if name in logged), "figure")


def values(records: tuple[Record, ...], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one number, NaN where a record has it but not as a finite number."""
    pairs = [(r["step"], r[key] if is_number(r[key]) else math.nan) for r in records if key in r]
    steps, found = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, dtype=float), np.array(found, dtype=float)


def keys(records: tuple[Record, ...]) -> list[str]:
    """All numbers that any of the records has, in the order of their first appearance."""
    found = {key: None for record in records for key, value in record.items() if is_number(value)}
    return [key for key in found if key not in ("step", "kind")]


def inner_gradients_per_step(run: Run) -> float:
    """Of one outer step; NaN where it is not known."""
    spent = looked_up(run.summary, "convergence.budget")
    if isinstance(spent, Mapping) and is_number(spent.get("inner_gradients")) and is_number(spent.get("steps")):
        return spent["inner_gradients"] / max(spent["steps"], 1)
    tasks, algo = setting(run, "train.tasks"), setting(run, "algo")
    if not is_number(tasks) or not isinstance(algo, Mapping):
        return math.nan
    steps = algo.get("inner_steps", 0)
    return float(tasks * steps) if is_number(steps) else math.nan


def inner_gradients(run: Run) -> float:
    done = run.summary.get("steps_done")
    return inner_gradients_per_step(run) * done if is_number(done) else math.nan


def validations(run: Run) -> list[Point]:
    """The validations in their order, in the unit they are shown in (per cent for an accuracy)."""
    scale, each = display_scale(metric_of(run)), inner_gradients_per_step(run)
    points = []
    for record in run.of("val"):
        mean, half = (_scaled(record.get(key), scale) for key in ("mean", "ci95"))
        spent = run.seconds.get(("val", record["step"]), math.nan)
        points.append(Point(record["step"], mean, half, spent, each * record["step"]))
    return points


def adaptation(run: Run) -> dict[str, np.ndarray]:
    """`step`, `mean`, `ci95` and `loss` of the test's curve, in the unit they are shown in; empty without a test."""
    rows = run.summary.get("curve")
    rows = [r for r in rows if isinstance(r, Mapping)] if isinstance(rows, list) else []
    scale = display_scale(metric_of(run))
    scales = {"step": 1.0, "mean": scale, "ci95": scale, "loss": 1.0}
    return {key: np.array([_scaled(r.get(key), by) for r in rows]) for key, by in scales.items()} if rows else {}


def _scaled(value: Any, scale: float) -> float:
    return scale * value if is_number(value) else math.nan


def headline_scores(run: Run) -> np.ndarray | None:
    """Each test task's figure at the adaptation step that is the result, or None."""
    if run.scores is None:
        return None
    steps, wanted = run.scores.steps, run.summary.get("headline_step")
    return run.scores.values[steps.index(wanted) if wanted in steps else -1]
