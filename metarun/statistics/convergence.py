r"""How fast a run learned: from the lines of metrics.jsonl and timing.jsonl to costs, areas and slopes.

A validation curve is y_k at outer step s_k, with four costs up to that point:

    steps s_k,   tasks = T s_k,   inner_gradients = G T s_k,   seconds of training, validation included

Symbols: T tasks of an outer step, G gradient evaluations that one task costs in training, y the mean reported figure
over the fixed validation tasks (accuracy as a share, or MSE).

    crossing   first k such that mean(y_{j-smooth+1} .. y_j) is at or beyond the threshold for j = k .. k+hold-1
    area       (1/c_end) integral of y over cost from 0 to c_end, by trapezoids: the mean figure over the budget
    trend      slope of y on steps over the last evaluations, with its t interval

A run that never crosses is censored: all that is known is that its cost is above that of its last evaluation. Missing
values (null in the file) count as short of any threshold; areas and slopes are taken over the values that are there.

`convergence_summary` gives numbers, strings, true, false and null under these keys:

    evaluations, missing   validations with and without a finite figure
    first, best, last      figures; best_step is the first step with the best
    budget                 cost of the last validation: steps, tasks, inner_gradients, seconds
    thresholds             list of name, value, reached, and at (cost) or else censored_at (cost)
    smooth, hold           as used for them
    area                   by unit, over the run's own budget
    trend                  slope, half, verdict, points
    rate, stationarity     of the probes' squared gradient norm (fields of `Rate`, `Stationarity`)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from metarun.statistics.intervals import Array
from metarun.statistics.rate import epsilon_stationarity, fit_line, fitted_rate
from metarun.storage.json_values import replace_nonfinite

Unit = Literal["steps", "tasks", "inner_gradients", "seconds"]
Verdict = Literal["rising", "flat", "falling"]
UNITS: tuple[Unit, ...] = get_args(Unit)

PROBE_NORM = "true_grad_norm2"
"""Of probe records: the debiased squared norm of the meta-gradient on the probe tasks."""

Records = Sequence[Mapping[str, Any]]


class Curve(NamedTuple):
    """Validation figures and what they had cost; each [P], by step, NaN where a number is missing."""

    values: Array
    steps: Array
    tasks: Array
    inner_gradients: Array
    seconds: Array


class Cost(NamedTuple):
    """None: not known."""

    steps: int
    tasks: int
    inner_gradients: float | None
    seconds: float | None


class Crossing(NamedTuple):
    """Exactly one is set, unless the run was never validated: then neither is."""

    at: Cost | None
    censored_at: Cost | None


class Trend(NamedTuple):
    slope: float  # of the figure, per outer step
    half: float  # of its 95 % interval; too short where neighbouring evaluations are alike by more than the trend
    verdict: Verdict  # of the figure; flat: the interval includes 0
    points: int


def validation_curve(
    records: Records, timing: Records, tasks_per_step: int, gradients_per_task: float | None = None
) -> Curve:
    """The curve of the records of kind `val`; of two with the same step the later line counts."""
    found, clock = _series(records, "val", "mean"), _series(timing, "val", "seconds")
    steps = np.array(sorted(found), dtype=np.float64)
    tasks = tasks_per_step * steps
    gradients = (math.nan if gradients_per_task is None else gradients_per_task) * tasks
    values = np.array([found[s] for s in steps], dtype=np.float64)
    return Curve(values, steps, tasks, gradients, np.array([clock.get(s, math.nan) for s in steps], dtype=np.float64))


def to_threshold(curve: Curve, threshold: float, higher_is_better: bool, smooth: int = 1, hold: int = 1) -> Crossing:
    """Cost until the trailing mean of `smooth` evaluations was at or beyond `threshold`, and was so `hold` times."""
    if smooth < 1 or hold < 1:
        raise ValueError(f"smooth and hold must be at least 1, got {smooth} and {hold}")
    level = _trailing_mean(curve.values, smooth)
    beyond = level >= threshold if higher_is_better else level <= threshold
    held = [k for k in range(len(beyond) - hold + 1) if beyond[k : k + hold].all()]
    if held:
        return Crossing(_cost(curve, held[0]), None)
    return Crossing(None, _cost(curve, -1) if len(beyond) else None)


def area_under_curve(curve: Curve, unit: Unit, budget: float | None = None) -> float | None:
    """Mean figure over a budget in `unit` (by default all that the run used); None without values or beyond them.

    The first value is held back to cost 0. Steps, tasks and gradients are multiples of one another, so that over a
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


def plateau(curve: Curve, window: int = 10) -> Trend | None:
    """Whether the last `window` evaluations still rise or fall; None for fewer than three."""
    known = np.flatnonzero(np.isfinite(curve.values))[-window:]
    line = fit_line(curve.steps[known], curve.values[known]) if len(known) > 2 else None
    if line is None:
        return None
    verdict: Verdict = "rising" if line.slope > line.half else "falling" if line.slope < -line.half else "flat"
    return Trend(line.slope, line.half, verdict, line.points)


def default_thresholds(curve: Curve, higher_is_better: bool, chance: float | None = None) -> dict[str, float]:
    """Levels relative to this run's own values, for a run that nothing else is known of; empty where it never improved.

    Half of the way from chance (where there is such a figure, else from the first value) to the best value, and 90 %
    of the way from the first to the best. Two runs have two sets of these: to compare runs, name thresholds.
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
    """All of it, ready for JSON; the keys are in the module's docstring."""
    curve = validation_curve(records, timing, tasks_per_step, gradients_per_task)
    named = default_thresholds(curve, higher_is_better, chance)
    named = named if thresholds is None else {f"{value:g}": value for value in thresholds}
    crossings = {name: to_threshold(curve, value, higher_is_better, smooth, hold) for name, value in named.items()}
    probes = _series(records, "probe", PROBE_NORM)
    summary = {
        **_figures(curve, higher_is_better),
        "budget": _plain(_cost(curve, -1) if len(curve.steps) else None),
        "thresholds": [_threshold(name, named[name], crossing) for name, crossing in crossings.items()],
        "smooth": smooth,
        "hold": hold,
        "area": {unit: area_under_curve(curve, unit) for unit in UNITS},
        "trend": _plain(plateau(curve, window)),
        "rate": _plain(fitted_rate(list(probes), list(probes.values()))),
        "stationarity": _plain(epsilon_stationarity(list(probes), list(probes.values()))),
    }
    return replace_nonfinite(summary)


def _figures(curve: Curve, higher_is_better: bool) -> dict[str, Any]:
    known = np.isfinite(curve.values)
    values, steps = curve.values[known], curve.steps[known]
    counts = {"evaluations": len(values), "missing": int((~known).sum())}
    if not len(values):
        return counts | dict.fromkeys(("first", "best", "best_step", "last"))
    best = _best(values, higher_is_better)
    best_step = int(steps[values == best][0])
    return counts | {"first": float(values[0]), "best": best, "best_step": best_step, "last": float(values[-1])}


def _threshold(name: str, value: float, crossing: Crossing) -> dict[str, Any]:
    at, censored_at = _plain(crossing.at), _plain(crossing.censored_at)
    return {"name": name, "value": value, "reached": at is not None, "at": at, "censored_at": censored_at}


def _plain(found: Any) -> dict[str, Any] | None:
    """A named tuple as a dictionary."""
    return None if found is None else found._asdict()


def _best(values: Array, higher_is_better: bool) -> float:
    return float(values.max() if higher_is_better else values.min())


def _cost(curve: Curve, k: int) -> Cost:
    gradients, seconds = float(curve.inner_gradients[k]), float(curve.seconds[k])
    known = (None if math.isnan(c) else c for c in (gradients, seconds))
    return Cost(int(curve.steps[k]), int(curve.tasks[k]), *known)


def _trailing_mean(values: Array, window: int) -> Array:
    """[P], NaN until the window is full and wherever a value in it is missing."""
    means = np.full(len(values), math.nan)
    if len(values) >= window:
        means[window - 1 :] = np.lib.stride_tricks.sliding_window_view(values, window).mean(1)
    return means


def _series(records: Records, kind: str, key: str) -> dict[int, float]:
    """step -> number, of the records of one kind; NaN where it is missing or no number."""
    kept = [r for r in records if r.get("kind") == kind and _is_number(r.get("step"))]
    return {int(r["step"]): float(r[key]) if _is_number(r.get(key)) else math.nan for r in kept}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
