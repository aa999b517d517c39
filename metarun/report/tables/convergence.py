"""The convergence summary of a run as tables: cost to thresholds, areas, trend, fitted rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metarun.report.read.facts import metric_of
from metarun.report.read.runs import Run
from metarun.report.tables.table import Table
from metarun.storage.text import NOTHING, count, display_scale, duration, format_metric, is_number, number

COSTS = ("steps", "tasks", "inner_gradients", "seconds")
HEADS = ("outer steps", "tasks", "inner gradients", "time")
ELSEWHERE = ("thresholds", "area", "budget", "smooth", "hold")
WORDS = {
    "evaluations": "validations with a finite figure",
    "missing": "validations without one",
    "trend": "trend of the last validations",
    "rate": "rate of the best squared gradient norm so far",
}


def tables(run: Run) -> tuple[Table, ...]:
    """Those of the tables that have rows; none where the summary has no such figures."""
    found = run.summary.get("convergence")
    if not isinstance(found, Mapping):
        return ()
    metric = metric_of(run)
    return tuple(t for t in (_thresholds(found, metric), _areas(found, metric), _rest(found, metric)) if t.rows)


def _thresholds(found: Mapping[str, Any], metric: str) -> Table:
    listed = found.get("thresholds")
    rows = [_threshold(t, metric) for t in listed if isinstance(t, Mapping)] if isinstance(listed, list) else []
    note = "“> x”: not reached within x. Thresholds relative to a run's own best differ from run to run." + _held(found)
    return Table("Cost to a validation threshold", ("threshold", "figure", *HEADS), tuple(rows), note)


def _held(found: Mapping[str, Any]) -> str:
    smooth, hold = found.get("smooth"), found.get("hold")
    if smooth in (None, 1) and hold in (None, 1):
        return ""
    return f" Reached: the mean of {number(smooth)} validations is beyond it {number(hold)} times in a row."


def _threshold(threshold: Mapping[str, Any], metric: str) -> tuple[str, ...]:
    at, censored = threshold.get("at"), threshold.get("censored_at")
    cost = at if isinstance(at, Mapping) else censored if isinstance(censored, Mapping) else {}
    sign = "" if isinstance(at, Mapping) else "> "
    cells = [f"{sign}{_cost(key, cost.get(key))}" if is_number(cost.get(key)) else NOTHING for key in COSTS]
    return (str(threshold.get("name", "")).replace("_", " "), format_metric(metric, threshold.get("value")), *cells)


def _cost(key: str, value: Any) -> str:
    return duration(value) if key == "seconds" else count(value)


def _areas(found: Mapping[str, Any], metric: str) -> Table:
    areas, budget = _part(found, "area"), _part(found, "budget")
    rows = [
        ("mean figure over the budget", *(format_metric(metric, areas.get(key)) for key in COSTS)),
        ("budget", *(_cost(key, budget.get(key)) for key in COSTS)),
    ]
    shown = tuple(row for row in rows if set(row[1:]) != {NOTHING})
    return Table("Area under the validation curve", ("", *HEADS), shown)


def _part(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = found.get(key)
    return part if isinstance(part, Mapping) else {}


def _rest(found: Mapping[str, Any], metric: str) -> Table:
    """Trend and rate in words; every other number under its own name."""
    rows = [row for key, value in found.items() if value is not None for row in _said(key, value, metric)]
    shown = tuple(rows) if found.get("evaluations") != 0 else ()
    return Table("Validation and rate", ("", "value"), shown, left=(0, 1))


def _said(key: str, value: Any, metric: str) -> list[tuple[str, str]]:
    if key in ELSEWHERE:
        return []
    if key in ("first", "best", "last"):
        return [(f"{key} validation", format_metric(metric, value))]
    if key in WORDS and isinstance(value, Mapping):
        return [(WORDS[key], _trend(value, metric) if key == "trend" else _rate(value))]
    if isinstance(value, Mapping):
        return [(f"{WORDS.get(key, key)}, {name}".replace("_", " "), number(v)) for name, v in value.items()]
    return [(WORDS.get(key, key).replace("_", " "), number(value))]


def _trend(trend: Mapping[str, Any], metric: str) -> str:
    scale, slope, half = display_scale(metric) * 1000, trend.get("slope"), trend.get("half")
    size = f": {number(scale * slope)} ± {number(scale * half)}" if is_number(slope) and is_number(half) else ""
    return f"{trend.get('verdict', '')}{size} in 1000 outer steps, over {number(trend.get('points'))} validations"


def _rate(rate: Mapping[str, Any]) -> str:
    fit = f", R² {number(rate['r2'], 3)}" if is_number(rate.get("r2")) else ""
    floor = f"; lost in noise from step {number(rate['floor_step'])} on" if is_number(rate.get("floor_step")) else ""
    exponent = f"{number(rate.get('slope'), 3)} ± {number(rate.get('half'), 3)}"
    return f"goes as outer steps to the power {exponent}, over {number(rate.get('points'))} probes{fit}{floor}"
