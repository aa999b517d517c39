"""The convergence summary of a run as tables: cost to thresholds, areas, trend, fitted rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metarun.report.facts import metric_of
from metarun.report.read import Run
from metarun.report.table import Table
from metarun.report.text import NOTHING, count, duration, figure, is_number, number, scale_of

COSTS = ("steps", "tasks", "inner_gradients", "seconds")
HEADS = ("outer steps", "tasks", "inner gradients", "time")
KNOWN = ("thresholds", "area", "budget", "trend", "rate", "stationarity")


def described(run: Run) -> dict[str, Any]:
    """The parts of a section."""
    found = run.summary.get("convergence")
    if not isinstance(found, Mapping) or not found:
        return {"missing": "The summary holds no convergence figures (they are added when a run ends)."}
    tables = (_thresholds(found, metric_of(run)), _areas(found, metric_of(run)), _rest(found, metric_of(run)))
    return {"tables": tuple(t for t in tables if t.rows)}


def _thresholds(found: Mapping[str, Any], metric: str) -> Table:
    listed = found.get("thresholds")
    rows = [_threshold(t, metric) for t in listed if isinstance(t, Mapping)] if isinstance(listed, list) else []
    note = "“> x”: not reached within x. Thresholds relative to a run's own best differ from run to run."
    return Table("Cost to a validation threshold", ("threshold", "figure", *HEADS), tuple(rows), note)


def _threshold(threshold: Mapping[str, Any], metric: str) -> tuple[str, ...]:
    at, censored = threshold.get("at"), threshold.get("censored_at")
    cost = at if isinstance(at, Mapping) else censored if isinstance(censored, Mapping) else {}
    sign = "" if isinstance(at, Mapping) else "> "
    cells = [f"{sign}{_cost(key, cost.get(key))}" if is_number(cost.get(key)) else NOTHING for key in COSTS]
    return (str(threshold.get("name", "")).replace("_", " "), figure(metric, threshold.get("value")), *cells)


def _cost(key: str, value: Any) -> str:
    return duration(value) if key == "seconds" else count(value)


def _areas(found: Mapping[str, Any], metric: str) -> Table:
    areas, budget = _part(found, "area"), _part(found, "budget")
    rows = [
        ("mean figure over the budget", *(figure(metric, areas.get(key)) for key in COSTS)),
        ("budget", *(_cost(key, budget.get(key)) for key in COSTS)),
    ]
    shown = tuple(row for row in rows if set(row[1:]) != {NOTHING})
    return Table("Area under the validation curve", ("", *HEADS), shown)


def _part(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = found.get(key)
    return part if isinstance(part, Mapping) else {}


def _rest(found: Mapping[str, Any], metric: str) -> Table:
    """Trend and rate in words; every other number under its own name."""
    rows: list[tuple[str, str]] = []
    for key, value in found.items():
        if key in ("thresholds", "area", "budget"):
            continue
        if key == "trend" and isinstance(value, Mapping):
            rows.append(("trend of the last validations", _trend(value, metric)))
        elif key == "rate" and isinstance(value, Mapping):
            rows.append(("rate of the best squared gradient norm so far", _rate(value)))
        elif key in ("first", "best", "last"):
            rows.append((f"{key} validation", figure(metric, value)))
        elif isinstance(value, Mapping):
            rows += [(f"{key}, {name}".replace("_", " "), number(v)) for name, v in value.items()]
        elif value is not None:
            rows.append((key.replace("_", " "), number(value)))
    return Table("Validation and rate", ("", "value"), tuple(rows))


def _trend(trend: Mapping[str, Any], metric: str) -> str:
    scale, slope, half = scale_of(metric) * 1000, trend.get("slope"), trend.get("half")
    size = f": {number(scale * slope)} ± {number(scale * half)}" if is_number(slope) and is_number(half) else ""
    return f"{trend.get('verdict', '')}{size} in 1000 outer steps, over {number(trend.get('points'))} validations"


def _rate(rate: Mapping[str, Any]) -> str:
    floor = f", below noise from step {number(rate['floor_step'])}" if rate.get("floor_step") is not None else ""
    return (
        f"steps^{number(rate.get('slope'), 3)} ± {number(rate.get('half'), 3)}, "
        f"{number(rate.get('points'))} probes, R² {number(rate.get('r2'), 3)}{floor}"
    )
