"""What a run is, what it reached and what it cost, from its summary or, failing that, from its settings.

Inner gradient evaluations are those of the summary's convergence budget. Where it does not count them: outer steps x
tasks of a step x `algo.inner_steps`, without Hessian products (iMAML's conjugate gradient, MAML's outer gradient).
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metarun.report.read.files import Record, as_mappings, look_up
from metarun.report.read.runs import Run
from metarun.storage.text import adaptation_unit, display_scale, is_number

UNKNOWN_METRIC = "metric"


def setting(run: Run, key: str) -> Any:
    """Return a setting by its dotted name, or None."""
    return look_up(run.config, key)


def seed_of(run: Run) -> Any:
    return run.summary.get("seed", setting(run, "seed"))


def component(run: Run, group: str) -> str:
    """Return the name of the run's algorithm, data set, model ...: the choice, or the name of the class."""
    chosen = run.summary.get(group) or setting(run, f"choices.{group}")
    target = setting(run, f"{group}._target_")
    return str(chosen or (str(target).rpartition(".")[2] if target else "unknown"))


def step_unit(run: Run) -> str:
    """What the test curve counts."""
    return adaptation_unit(run.summary.get("kind"))


def episode_size(run: Run, prefix: str = "") -> str:
    """Return `5-way 1-shot`, or `10-shot` for regression; with prefix "train_" the size in training."""
    found = (run.summary.get(prefix + key) for key in ("ways", "shots"))
    ways, shots = (setting(run, f"data.{k}") if v is None else v for k, v in zip(("ways", "shots"), found, strict=True))
    if shots is None:
        return "unknown size"
    if run.summary.get("kind") == "control":
        return f"{shots} explored trajectories"
    has_classes = run.summary.get("kind") == "classification" or metric_of(run) == "accuracy"
    return f"{ways}-way {shots}-shot" if has_classes and ways is not None else f"{shots}-shot"


def metric_of(run: Run) -> str:
    """Return the name of the reported metric."""
    named = run.summary.get("metric")
    if named:
        return str(named)
    logged = {key for record in run.of("train")[:1] for key in record}
    return next((name for name in ("accuracy", "log_likelihood", "return", "mse") if name in logged), UNKNOWN_METRIC)


def series(records: Sequence[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of one metric; NaN where a record has it but not as a finite number."""
    pairs = [(r["step"], r[name] if is_number(r[name]) else math.nan) for r in records if name in r]
    steps, found = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, dtype=float), np.array(found, dtype=float)


def metric_names(records: Sequence[Record]) -> list[str]:
    """Return the names of all metrics in the records, in the order of their first appearance."""
    found = dict.fromkeys(key for record in records for key, value in record.items() if is_number(value))
    return [key for key in found if key not in ("step", "kind")]


def inner_gradients_per_step(run: Run) -> float:
    """Return the inner gradients of one outer step; NaN if unknown."""
    spent, done = (look_up(run.summary, f"convergence.budget.{key}") for key in ("inner_gradients", "steps"))
    if is_number(spent) and is_number(done):
        return spent / max(done, 1)
    tasks, algo = setting(run, "train.tasks"), setting(run, "algo")
    steps = algo.get("inner_steps", 0) if isinstance(algo, Mapping) else None
    return float(tasks * steps) if is_number(tasks) and is_number(steps) else math.nan


def inner_gradients(run: Run) -> float:
    steps = run.summary.get("steps_done")
    return inner_gradients_per_step(run) * steps if is_number(steps) else math.nan


def validation_curve(run: Run) -> dict[str, np.ndarray]:
    """Return `step`, `mean`, `ci95`, `seconds` and `inner_gradients` (spent so far) of each validation; {} without any.

    Means and intervals are in display units: per cent for an accuracy.
    """
    curve = _read_curve(run, run.of("val"))
    if curve:
        curve["seconds"] = np.array([run.seconds.get(("val", int(step)), math.nan) for step in curve["step"]])
        curve["inner_gradients"] = inner_gradients_per_step(run) * curve["step"]
    return curve


def test_curve(run: Run) -> dict[str, np.ndarray]:
    """Return `step`, `mean`, `ci95` and `loss` after each adaptation step, in display units; {} without a test."""
    return _read_curve(run, as_mappings(run.summary.get("curve")))


def _read_curve(run: Run, rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    scale = display_scale(metric_of(run)) if rows else 1.0
    scales = {"step": 1.0, "mean": scale, "ci95": scale, "loss": 1.0} if rows else {}
    return {
        key: np.array([by * r[key] if is_number(r.get(key)) else math.nan for r in rows]) for key, by in scales.items()
    }


def headline_scores(run: Run) -> np.ndarray | None:
    """Return the metric of each test task at the reported adaptation step, or None."""
    if run.scores is None:
        return None
    reported = [scores for step, scores in run.scores.items() if step == run.summary.get("headline_step")]
    return (reported or list(run.scores.values()))[-1]


def penalty_terms(run: Run) -> list[Mapping[str, Any]]:
    """Return the summary's entry for each penalty."""
    return as_mappings(run.summary.get("regularization"))


def command_of(run: Run) -> tuple[str, str]:
    """Return the command that repeats the run, and a note if it may be incomplete."""
    if run.overrides is not None:
        return shlex.join(["metarun", *(o for o in run.overrides if not o.startswith(("hydra.", "sweep.")))]), ""
    choices = setting(run, "choices")
    if not isinstance(choices, Mapping):
        return "", "The command is unknown: neither .hydra/overrides.yaml nor the choices in config.yaml are there."
    chosen = [f"{group}={name}" for group, name in choices.items() if group != "recipe"]
    seed = [f"seed={setting(run, 'seed')}"] if setting(run, "seed") else []
    note = "Built from the chosen groups; other settings that were typed are in the settings below."
    return shlex.join(["metarun", *chosen, *seed]), note
