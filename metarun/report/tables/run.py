"""The tables of one run: adaptation, further metrics, convergence, alarms, analyses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metarun.report.compare.results import interval_of
from metarun.report.read.facts import headline_scores, metric_of, step_unit
from metarun.report.read.files import Analysis, as_mapping, as_mappings
from metarun.report.read.runs import Run
from metarun.report.tables.table import Table
from metarun.storage import text
from metarun.storage.text import NOTHING, count, format_metric, is_number, number

EXTREME_TASKS = 5
FOLDED_ROWS, MAX_ROWS = 8, 40  # of an analysis's table, and adaptation steps
METRICS = {
    "pointwise_log_likelihood": "log-likelihood of single targets",
    "joint_log_likelihood": "log-likelihood of all targets together",
    "context_log_likelihood": "log-likelihood of the context",
    "elbo": "ELBO",
    "mse": "MSE of the mean",
}
COSTS = {"steps": "outer steps", "tasks": "tasks", "inner_gradients": "inner gradients", "seconds": "time"}
OWN_TABLES = ("thresholds", "area", "budget", "smooth", "hold")  # parts of the convergence summary
OPTIMUM = {
    "first": "at the first record",
    "last": "at the last record",
    "distance": "distance of theta at the last record",
    "floor": "at the learner's own fixed point",
    "plateau": "mean of the last half",
    "noise": "predicted from the noise of the tasks",
    "until_step": "last step of the fall",
    "contraction": "distance left per step, measured",
    "predicted_contraction": "distance left per step, predicted",
    "slowest_contraction": "distance left per step in the end, predicted",
}
CONVERGENCE = {
    "evaluations": "validations with a finite metric",
    "missing": "validations without one",
    "trend": "trend of the last validations",
    "rate": "rate of the squared gradient norm",
    "optimum": "excess risk",
    "noise_scale": "noise scale",
}

COLUMNS = {
    "inner_lr": "inner rate", "prox": "prox (lambda)", "cg_steps": "CG steps", "half": "± (95 %)", "ci95": "± (95 %)",
    "error": "standard error", "sd": "standard deviation", "iqm": "IQM", "n": "number", "lr": "outer rate",
}  # fmt: skip
NUMBERED = {"after": "after {}", "mean": "mean after {}", "half": "± after {} (95 %)", "loss": "loss after {}"}
WORDS = {"None": NOTHING, "": NOTHING, "nan": NOTHING, "True": "yes", "False": "no", "inf": "infinity"}

MetricValues = Mapping[str, Mapping[str, Any]]
"""Metric name -> `mean` and `ci95`."""


def adaptation_table(run: Run) -> Table:
    """The test metric after each adaptation step."""
    metric, unit = metric_of(run), step_unit(run)
    rows = tuple(
        (number(r.get("step")), format_metric(metric, r.get("mean"), r.get("ci95"), unit=False), number(r.get("loss")))
        for r in as_mappings(run.summary.get("curve"))
    )
    note = f"± is half of a 95 % interval over {count(run.summary.get('n_tasks'))} tasks."
    return Table(f"By {unit}", (unit, text.axis_label(metric), "query loss"), rows[:MAX_ROWS], note)


def calibration_table(run: Run) -> Table:
    """Confidence and accuracy of the test queries in bins of equal size, and the measures of all."""
    found = as_mapping(run.summary.get("calibration"))
    rows = [
        tuple(format_metric("accuracy", row.get(key), unit=False) for key in ("confidence", "accuracy"))
        for row in as_mappings(found.get("bins"))
    ]
    if not rows:
        return Table("Calibration", (), ())
    inside, level = (format_metric("accuracy", found.get(key)) for key in ("coverage", "level"))
    note = f"Test queries in {len(rows)} bins of equally many by the probability of the chosen class. "
    note += f"The fewest classes with {level} probability are {number(found.get('set_size'), 3)} and hold {inside}."
    columns = ("mean probability of the chosen class (%)", "accuracy (%)")
    return Table("Calibration", columns, tuple(rows), note, left=(), folded=True)


def set_table(run: Run) -> Table:
    """The test metric on each data set of a mixture."""
    metric, parts = metric_of(run), metric_values(run.summary.get("by_set"))
    rows = [
        (name, format_metric(metric, r.get("mean"), r.get("ci95"), unit=False), count(r.get("n_tasks")))
        for name, r in parts.items()
    ]
    mean = format_metric(metric, run.summary.get("mean"), run.summary.get("ci95"), unit=False)
    note = "± is half of a 95 % interval over the tasks of a set; of the mean, for new tasks of these sets."
    columns = ("data set", text.axis_label(metric), "tasks")
    return Table("On each data set", columns, (*rows, ("mean of the sets", mean, "")), note)


def task_table(run: Run) -> Table:
    """The hardest and the easiest test tasks by the reported metric, with their classes where these are known."""
    scores, metric = headline_scores(run), metric_of(run)
    names = {t.get("task"): t.get("classes") for t in as_mappings(run.tasks.get("tasks"))}
    columns = ("", "task", text.axis_label(metric), "classes")
    if scores is None or len(scores) < 2 * EXTREME_TASKS:
        return Table("Hardest and easiest test tasks", columns, ())
    sign = 1 if text.higher_is_better(metric) else -1
    order = np.argsort(np.where(np.isfinite(scores), sign * scores, -np.inf), kind="stable")
    rows = []
    for word, which in (("hardest", order[:EXTREME_TASKS]), ("easiest", order[::-1][:EXTREME_TASKS])):
        for at in which.tolist():
            known = names.get(at)
            classes = ", ".join(map(str, known)) if isinstance(known, list) else ""
            rows.append((word, str(at), format_metric(metric, float(scores[at]), unit=False), classes))
    width = 4 if any(row[3] for row in rows) else 3
    note = "A task's number is that of its episode, the same in all runs on these episodes."
    cells, left = tuple(row[:width] for row in rows), (0, 3)[: width - 2]
    return Table("Hardest and easiest test tasks", columns[:width], cells, note, left=left, folded=True)


def alarm_table(alarms: Mapping[str, Any]) -> Table:
    rows = []
    for name, alarm in alarms.items():
        cells: tuple[str, ...] = (number(alarm), "", "", "")
        if isinstance(alarm, Mapping):
            cells = tuple(number(alarm.get(key)) for key in ("count", "first", "last", "message"))
        rows.append((str(name), *cells))
    return Table("Alarms raised", ("alarm", "times", "first step", "last step", "message"), tuple(rows), left=(0, 4))


def further_metrics_table(run: Run) -> Table:
    """All metrics of the test, beside those of the best possible predictor."""
    own, best = metrics_of(run), metric_values(run.summary.get("oracle"))
    names = [*own, *(name for name in best if name not in own)]
    rows = [(name_metric(n), format_named(n, own.get(n)), format_named(n, best.get(n))) for n in names]
    note = f"± is half of a 95 % interval over {count(run.summary.get('n_tasks'))} tasks."
    if best:
        note += " Best possible: the exact posterior, given the distribution that the tasks were drawn from."
    width = 3 if best else 2
    columns = ("metric", "this run", "best possible")[:width]
    return Table("On the test tasks", columns, tuple(row[:width] for row in rows), note)


def metric_values(value: Any) -> MetricValues:
    """Return the entries of a part of the summary that are metrics."""
    return {str(k): v for k, v in as_mapping(value).items() if isinstance(v, Mapping)}


def metrics_of(run: Run) -> MetricValues:
    return {metric_of(run): run.summary, **metric_values(run.summary.get("beside"))}


def name_metric(name: str) -> str:
    if name.startswith("coverage_"):
        return f"targets inside the {name.removeprefix('coverage_')} % band"
    return METRICS.get(name, text.metric_name(name))


def format_named(name: str, value: Mapping[str, Any] | None) -> str:
    if not value:
        return NOTHING
    return format_metric("accuracy" if name.startswith("coverage_") else name, value.get("mean"), value.get("ci95"))


def format_over_seeds(name: str, seeds: Sequence[MetricValues]) -> str:
    """Format a metric with its interval over seeds, or over the tasks of a single one."""
    found = [metrics[name] for metrics in seeds if is_number(metrics.get(name, {}).get("mean"))]
    if not found:
        return NOTHING
    interval = interval_of([f["mean"] for f in found], found[0].get("ci95", math.nan))
    return format_named(name, {"mean": interval.mean, "ci95": interval.half})


def convergence_tables(run: Run) -> tuple[Table, ...]:
    """Return the tables of the convergence summary that have rows."""
    found, metric = as_mapping(run.summary.get("convergence")), metric_of(run)
    tables = (_threshold_table(found, metric), _area_table(found, metric), _trend_table(found, metric))
    return tuple(table for table in tables if table.rows)


def _threshold_table(found: Mapping[str, Any], metric: str) -> Table:
    """The cost to reach each threshold, or a lower bound."""
    rows = []
    for threshold in as_mappings(found.get("thresholds")):
        reached = isinstance(threshold.get("at"), Mapping)
        sign, cost = "" if reached else "> ", as_mapping(threshold.get("at" if reached else "censored_at"))
        cells = [f"{sign}{_format_cost(k, cost.get(k))}" if is_number(cost.get(k)) else NOTHING for k in COSTS]
        name = str(threshold.get("name", "")).replace("_", " ")
        rows.append((name, format_metric(metric, threshold.get("value")), *cells))
    note = "“> x”: not reached within x. Thresholds relative to a run's own best differ from run to run."
    smooth, hold = found.get("smooth"), found.get("hold")
    if smooth not in (None, 1) or hold not in (None, 1):
        note += f" Reached: the mean of {number(smooth)} validations is beyond it {number(hold)} times in a row."
    return Table("Cost to a validation threshold", ("threshold", "value", *COSTS.values()), tuple(rows), note)


def _format_cost(key: str, value: Any) -> str:
    return text.duration(value) if key == "seconds" else count(value)


def _area_table(found: Mapping[str, Any], metric: str) -> Table:
    areas, budget = as_mapping(found.get("area")), as_mapping(found.get("budget"))
    rows = (
        ("mean value over the budget", *(format_metric(metric, areas.get(key)) for key in COSTS)),
        ("budget", *(_format_cost(key, budget.get(key)) for key in COSTS)),
    )
    known = tuple(row for row in rows if set(row[1:]) != {NOTHING})
    return Table("Area under the validation curve", ("", *COSTS.values()), known)


def _trend_table(found: Mapping[str, Any], metric: str) -> Table:
    """Trend and rate in words; every other number under its own name."""
    rows: list[tuple[str, str]] = []
    for key, value in found.items() if found.get("evaluations") != 0 else ():
        name = CONVERGENCE.get(key, key)
        if value is None or key in OWN_TABLES:
            continue
        if key in ("first", "best", "last"):
            rows.append((f"{key} validation", format_metric(metric, value)))
        elif key == "trend" and isinstance(value, Mapping):
            rows.append((name, _describe_trend(value, metric)))
        elif key == "rate" and isinstance(value, Mapping):
            rows.append((name, _describe_rate(value)))
        elif isinstance(value, Mapping):
            words = OPTIMUM if key == "optimum" else {}
            parts = [(words.get(part, str(part).replace("_", " ")), v) for part, v in value.items() if v is not None]
            rows += [(f"{name.replace('_', ' ')}, {part}", number(v)) for part, v in parts]
        else:
            rows.append((name.replace("_", " "), number(value)))
    return Table("Validation and rate", ("", "value"), tuple(rows), left=(0, 1))


def _describe_trend(trend: Mapping[str, Any], metric: str) -> str:
    scale, slope, half = text.display_scale(metric) * 1000, trend.get("slope"), trend.get("half")
    size = f": {number(scale * slope)} ± {number(scale * half)}" if is_number(slope) and is_number(half) else ""
    return f"{trend.get('verdict', '')}{size} in 1000 outer steps, over {number(trend.get('points'))} validations"


def _describe_rate(rate: Mapping[str, Any]) -> str:
    fit = f", R² {number(rate['r2'], 3)}" if is_number(rate.get("r2")) else ""
    floor = f"; lost in noise from step {number(rate['floor_step'])} on" if is_number(rate.get("floor_step")) else ""
    exponent = f"{number(rate.get('slope'), 3)} ± {number(rate.get('half'), 3)}"
    return f"proportional to outer steps to the power {exponent}, over {number(rate.get('points'))} probes{fit}{floor}"


def analysis_tables(analysis: Analysis) -> list[Table]:
    """The numbers of an analysis's summary, and its rows."""
    plain = {k: v for k, v in analysis.summary.items() if is_number(v) or (isinstance(v, str) and len(v) < 200)}
    facts = tuple((name_column(str(k)), number(v)) for k, v in plain.items() if k != "message")
    tables = [t for t in map(_read_table, as_mappings(analysis.summary.get("tables"))) if t.columns and t.rows]
    tables += [Table("Summary", ("", "value"), facts, left=(0, 1))] if facts else []
    if analysis.rows:
        left = tuple(k for k in range(len(analysis.columns)) if not all(_is_numeric(row[k]) for row in analysis.rows))
        more = analysis.more + max(0, len(analysis.rows) - MAX_ROWS)
        note = f"{more} more rows are in {analysis.path / 'results.csv'}." if more else ""
        rows = tuple(tuple(map(_round_cell, row)) for row in analysis.rows[:MAX_ROWS])
        folded = len(rows) > FOLDED_ROWS
        columns = tuple(map(name_column, analysis.columns))
        tables.append(Table("Rows (results.csv)", columns, rows, note, left, folded=folded))
    return tables


def _read_table(stored: Mapping[str, Any]) -> Table:
    """A table that an analysis made itself: lines of as many cells as it has columns."""
    columns, *rows = (
        tuple(map(str, line)) if isinstance(line, list) else ()
        for line in (stored.get("columns"), *(stored["rows"] if isinstance(stored.get("rows"), list) else ()))
    )
    whole = tuple(row for row in rows if len(row) == len(columns))
    note = "; ".join(str(stored.get("note", "")).splitlines())
    return Table(str(stored.get("title", "")), columns, whole, note)


def name_column(name: str) -> str:
    """`after_5` -> `after 5 steps`: the name of a number of an analysis in words."""
    if name in COLUMNS:
        return COLUMNS[name]
    head, _, steps = name.rpartition("_")
    if steps.isdecimal() and head in NUMBERED:
        return NUMBERED[head].format(text.count_nouns(int(steps), "step"))
    return name.replace("_", " ")


def _is_numeric(cell: str) -> bool:
    try:
        float(cell or "nan")
    except ValueError:
        return False
    return True


def _round_cell(cell: str) -> str:
    """A number to five digits, a dash for what is not there, other text as it is."""
    if cell in WORDS:
        return WORDS[cell]
    return number(float(cell), 5) if cell and _is_numeric(cell) and not cell.lstrip("-").isdecimal() else cell
