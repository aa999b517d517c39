r"""How fast a run learned: costs, areas and slopes from the lines of metrics.jsonl and timing.jsonl.

A validation curve is y_k at outer step s_k, with four costs up to that point:

    steps s_k,   tasks = T s_k,   inner_gradients = G T s_k,   seconds of training, validation included

Symbols: T tasks of an outer step, G gradient evaluations that one task costs in training, y the mean reported metric
over the fixed validation tasks (accuracy as a share, or MSE).

    crossing   first k such that mean(y_{j-smooth+1} .. y_j) is at or beyond the threshold for j = k .. k+hold-1
    area       (1/c_end) integral of y over cost from 0 to c_end, by trapezoids: the mean metric over the budget
    trend      slope of y on steps over the last evaluations, with its t interval

A run that never crosses is censored: its cost is known to be above that of its last evaluation. Missing
values (null in the file) count as short of any threshold; areas and slopes are taken over the values that are there.

`convergence_summary` gives numbers, strings, true, false and null under these keys:

    evaluations, missing   validations with and without a finite metric
    first, best, last      metrics; best_step is the first step with the best
    budget                 cost of the last validation: steps, tasks, inner_gradients, seconds
    thresholds             list of name, value, reached, and at (cost) or else censored_at (cost)
    smooth, hold           as used for them
    area                   by unit, over the run's own budget
    trend                  slope, half, verdict, points
    rate, stationarity     of the probes' squared gradient norm (fields of `Rate`, `Stationarity`)
    noise_scale            of the tasks' meta-gradients (fields of `NoiseScale`)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from metarun.report.statistics.intervals import Array
from metarun.report.statistics.noise_scale import fit_noise_scale
from metarun.report.statistics.rate import epsilon_stationarity, fit_line, fit_rate
from metarun.storage.json_values import replace_nonfinite
from metarun.storage.text import is_number

Unit = Literal["steps", "tasks", "inner_gradients", "seconds"]
Verdict = Literal["rising", "flat", "falling"]
UNITS: tuple[Unit, ...] = get_args(Unit)

PROBE_NORM = "true_grad_norm2"
"""The metric of probe records: the debiased squared norm of the meta-gradient on the probe tasks."""

Records = Sequence[Mapping[str, Any]]


class Curve(NamedTuple):
    """Validation metrics and their costs; each [P], in order of steps, NaN where a number is missing."""

    values: Array
    steps: Array
    tasks: Array
    inner_gradients: Array
    seconds: Array


class Cost(NamedTuple):
    """The cost up to a validation; None: not known."""

    steps: int
    tasks: int
    inner_gradients: float | None
    seconds: float | None


class Crossing(NamedTuple):
    """Exactly one is set, unless the run was never validated: then neither is."""

    at: Cost | None
    censored_at: Cost | None


class Trend(NamedTuple):
    slope: float  # of the metric, per outer step
    half: float  # of its 95 % interval; too short where neighbouring evaluations are alike by more than the trend
    verdict: Verdict  # of the metric; flat: the interval includes 0
    points: int


def validation_curve(
    records: Records, timing: Records, tasks_per_step: int, gradients_per_task: float | None = None
) -> Curve:
    """Return the curve of the records of kind `val`; of two with the same step the later line counts."""
    metrics, clock = _read_series(records, "val", "mean"), _read_series(timing, "val", "seconds")
    steps = np.array(sorted(metrics), dtype=np.float64)
    values = np.array([metrics[s] for s in steps], dtype=np.float64)
    seconds = np.array([clock.get(s, math.nan) for s in steps], dtype=np.float64)
    tasks = tasks_per_step * steps
    gradients = (math.nan if gradients_per_task is None else gradients_per_task) * tasks
    return Curve(values, steps, tasks, gradients, seconds)


def find_crossing(curve: Curve, threshold: float, higher_is_better: bool, smooth: int = 1, hold: int = 1) -> Crossing:
    """Find where the trailing mean of `smooth` evaluations is at or beyond `threshold` for `hold` in a row."""
    if smooth < 1 or hold < 1:
        raise ValueError(f"smooth and hold must be at least 1, got {smooth} and {hold}")
    level = np.full(len(curve.values), math.nan)  # NaN until the window is full
    if len(level) >= smooth:
        level[smooth - 1 :] = np.lib.stride_tricks.sliding_window_view(curve.values, smooth).mean(1)
    beyond = level >= threshold if higher_is_better else level <= threshold
    held = [k for k in range(len(beyond) - hold + 1) if beyond[k : k + hold].all()]
    if held:
        return Crossing(_cost(curve, held[0]), None)
    return Crossing(None, _cost(curve, -1) if len(beyond) else None)


def area_under_curve(curve: Curve, unit: Unit, budget: float | None = None) -> float | None:
    """Return the mean metric over a budget in `unit` (default: the run's own); None without values or beyond them.

    The first value also counts from cost 0 on. Steps, tasks and gradients are multiples of one another, so that over a
    run's own budget they give the same area; to compare learners give both the same budget in the unit that matters.
    """
    x, y = getattr(curve, unit), curve.values
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if not len(x) or (budget is not None and not 0 < budget <= x[-1]):
        return None
    end = x[-1] if budget is None else budget
    inside = x < end
    xs = np.concatenate([[0.0], x[inside], [end]])
    ys = np.concatenate([y[:1], y[inside], [np.interp(end, x, y)]])
    return float(np.diff(xs) @ (ys[1:] + ys[:-1]) / 2 / end) if end else float(y[0])


def fit_trend(curve: Curve, window: int = 10) -> Trend | None:
    """Fit a line to the last `window` evaluations: do they still rise or fall? None for fewer than three."""
    known = np.flatnonzero(np.isfinite(curve.values))[-window:]
    line = fit_line(curve.steps[known], curve.values[known]) if len(known) > 2 else None
    if line is None:
        return None
    verdict: Verdict = "rising" if line.slope > line.half else "falling" if line.slope < -line.half else "flat"
    return Trend(line.slope, line.half, verdict, line.points)


def default_thresholds(curve: Curve, higher_is_better: bool, chance: float | None = None) -> dict[str, float]:
    """Return levels relative to this run's own values; empty if it never improved.

    They are half of the way from chance (if it is known, else from the first value) to the best value, and 90 % of the
    way from the first to the best. Two runs have two sets of these: to compare runs, name thresholds.
    """
    known = curve.values[np.isfinite(curve.values)]
    if not len(known):
        return {}
    first, best = float(known[0]), _best(known, higher_is_better)
    start, name = (first, "first") if chance is None else (chance, "chance")
    levels = {f"midpoint_{name}_best": (start, 0.5), "90_percent_first_best": (first, 0.9)}
    ahead = {key: best > begin if higher_is_better else best < begin for key, (begin, _) in levels.items()}
    return {key: begin + share * (best - begin) for key, (begin, share) in levels.items() if ahead[key]}


def convergence_summary(
    records: Records,
    timing: Records,
    *,
    tasks_per_step: int,
    higher_is_better: bool,
    gradients_per_task: float | None = None,
    thresholds: Sequence[float] | None = None,
    chance: float | None = None,
    smooth: int = 1,
    hold: int = 1,
    window: int = 10,
) -> dict[str, Any]:
    """Return all measures, ready for JSON; the keys are in the module's docstring."""
    curve = validation_curve(records, timing, tasks_per_step, gradients_per_task)
    levels = default_thresholds(curve, higher_is_better, chance)
    if thresholds is not None:
        levels = {f"{value:g}": value for value in thresholds}
    crossings = []
    for name, value in levels.items():
        at, censored_at = map(_as_dict, find_crossing(curve, value, higher_is_better, smooth, hold))
        reached = at is not None
        crossings.append({"name": name, "value": value, "reached": reached, "at": at, "censored_at": censored_at})
    probes = _read_series(records, "probe", PROBE_NORM)
    steps, norms = list(probes), list(probes.values())
    length, variance = (list(_read_series(records, "train", key).values()) for key in ("grad_norm", "grad_variance"))
    summary = {
        **_summarise_values(curve, higher_is_better),
        "budget": _as_dict(_cost(curve, -1) if len(curve.steps) else None),
        "thresholds": crossings,
        "smooth": smooth,
        "hold": hold,
        "area": {unit: area_under_curve(curve, unit) for unit in UNITS},
        "trend": _as_dict(fit_trend(curve, window)),
        "rate": _as_dict(fit_rate(steps, norms)),
        "stationarity": _as_dict(epsilon_stationarity(steps, norms)),
        "noise_scale": _as_dict(fit_noise_scale(length, variance, tasks_per_step)),
    }
    return replace_nonfinite(summary)


def _summarise_values(curve: Curve, higher_is_better: bool) -> dict[str, Any]:
    known = np.isfinite(curve.values)
    values, steps = curve.values[known], curve.steps[known]
    counts = {"evaluations": len(values), "missing": int((~known).sum())}
    if not len(values):
        return counts | dict.fromkeys(("first", "best", "best_step", "last"))
    best = _best(values, higher_is_better)
    best_step = int(steps[values == best][0])
    return counts | {"first": float(values[0]), "best": best, "best_step": best_step, "last": float(values[-1])}


def _as_dict(value: Any) -> dict[str, Any] | None:
    """A named tuple as a dictionary; None stays None."""
    return None if value is None else value._asdict()


def _best(values: Array, higher_is_better: bool) -> float:
    return float(values.max() if higher_is_better else values.min())


def _cost(curve: Curve, k: int) -> Cost:
    gradients, seconds = float(curve.inner_gradients[k]), float(curve.seconds[k])
    known = (None if math.isnan(c) else c for c in (gradients, seconds))
    return Cost(int(curve.steps[k]), int(curve.tasks[k]), *known)


def _read_series(records: Records, kind: str, key: str) -> dict[int, float]:
    """step -> number, of the records of one kind; NaN where it is missing or not a number."""
    chosen = [r for r in records if r.get("kind") == kind and is_number(r.get("step"))]
    return {int(r["step"]): float(r[key]) if is_number(r.get(key)) else math.nan for r in chosen}
