"""Metrics for the console: one line for a record, one table for a result."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from metarun.storage.headline import (
    describe_calibration,
    describe_errors,
    describe_unaveraged,
    describe_worst,
    format_bounds,
    headline,
)
from metarun.storage.loggers import Record
from metarun.storage.published import compare, describe
from metarun.storage.text import adaptation_unit, format_metric, is_number

SHOWN = (
    *("return", "environment_steps", "loss", "adaptation_gain", "accuracy"),
    *("log_likelihood", "kl", "grad_norm", "cg_residual"),
)
MAX_ROWS = 12


def metrics_line(record: Record, metric: str) -> str:
    """Format a record: `loss 0.31  adaptation_gain 2.7  ...  590 tasks/s`, or `val mse 0.25 +- 0.05`."""
    values, timing = record.values, record.timing
    if record.kind != "train":
        best = "  (best so far)" if values.get("improved") else ""
        return f"{record.kind} {metric} {format_plain(metric, values['mean'], values['ci95'])}{best}"
    parts = [f"{name} {values[name]:.4g}" for name in SHOWN if name in values]
    parts += [f"{timing['tasks_per_second']:.4g} tasks/s"] if "tasks_per_second" in timing else []
    parts += [f"{format_clock(timing['seconds_left'])} left"] if "seconds_left" in timing else []
    return "  ".join(parts)


def format_plain(metric: str, mean: Any, half: Any = None) -> str:
    """`format_metric` in ASCII."""
    return format_metric(metric, mean, half, plus_minus="+-", missing="not finite")


def format_clock(seconds: float) -> str:
    """Format seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def result_table(summary: dict[str, Any]) -> Group:
    """The test metric after each adaptation step, its conditions above it, and the run folder below."""
    parts: list[Any] = [Text("")]
    if summary.get("curve"):
        unit = adaptation_unit(summary["kind"])
        after = f" after {summary['headline_step']} {unit}" if len(summary["curve"]) > 1 else ""
        number = headline(summary["metric"], summary, plus_minus="+-")
        kind = f"{summary['interval']} interval" if summary.get("interval") else "interval"
        result = f"test {summary['metric']}: {number} (95 % {kind}, {summary['n_tasks']} tasks){after}"
        beside = describe_errors(summary["metric"], summary, plus_minus="+-")
        parts += [Text(result, style="bold"), *([Text(beside)] if beside else []), Text(describe_conditions(summary))]
        own = describe_worst(summary["metric"], summary, "+-"), describe_calibration(summary, "+-")
        parts += [Text(line) for line in own if line]
        plain = describe_unaveraged(summary["metric"], summary, plus_minus="+-")
        parts += [Text(f"without the average: {plain}")] if plain else []
        parts += [Text(f"note: {summary['caveat']}")] if summary.get("caveat") else []
        parts += [_curve_table(summary)] if len(summary["curve"]) > 1 or not summary.get("beside") else []
        parts += [_set_table(summary)] if summary.get("by_set") else []
        parts += [_beside_table(summary)] if summary.get("beside") or summary.get("oracle") else []
        published = summary.get("published") or {}
        if published and (comparisons := compare(published, summary)):
            parts.append(Text(describe(comparisons, published["source"])))
    # A narrow terminal breaks lines between words; a path stays in one piece, to be copied.
    folder = str(summary["run_dir"])
    parts += [Text(line, overflow="ignore" if folder in line else None) for line in _closing_lines(summary)]
    return Group(*parts)


def describe_conditions(summary: dict[str, Any]) -> str:
    """What the test metric was measured on."""
    size = f"{summary['ways']}-way " if summary["kind"] == "classification" else ""
    hashes = f"episodes {summary['episodes_sha256'][:12]}"
    rows = f"{size}{summary['shots']}-shot, {summary['test_queries']} queries{' a class' if size else ''}"
    if summary["kind"] == "control":
        scored = summary["test_queries"]
        rows = f"{summary['reward']} reward, {scored} {'trajectory' if scored == 1 else 'trajectories'} scored a task"
    shown = [("images_are", "images "), ("inputs_are", "inputs "), ("targets_are", "targets ")]
    images = "".join(f"{word}{summary[key]}, " for key, word in shown if key in summary)
    split = f"split {summary['split']}, {images}norm {summary['norm']}"
    tested, trained = summary.get("test_precision"), summary.get("precision")
    precision = f", tested in {tested} (trained in {trained})" if tested and tested != trained else ""
    notes = [summary.get("approximation"), "transductive" if summary.get("transductive") else None]
    noted = ", ".join(filter(None, notes))
    algo = f"{summary['algo']} ({noted})" if noted else summary["algo"]
    return f"{algo} on {summary['data']}, {rows}, {split}, {hashes}{precision}"


def _curve_table(summary: dict[str, Any]) -> Table:
    metric, curve, reported = summary["metric"], summary["curve"], summary["headline_step"]
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    medians = ("median", "95 % interval") if "median" in curve[0] else ()
    same = all(row["loss"] == row["mean"] for row in curve if is_number(row["mean"]))
    losses = () if same else ("query loss",)
    for column in (adaptation_unit(summary["kind"]), f"test {metric}", "95 % interval", *medians, *losses):
        table.add_column(column, justify="right")
    if len(curve) > MAX_ROWS:  # evenly spread rows with the first, the last and the headline
        every = -(-len(curve) // (MAX_ROWS - 2))
        curve = [r for r in curve if r["step"] % every == 0 or r["step"] in (reported, curve[-1]["step"])]
    for row in curve:
        cells = [str(row["step"]), format_plain(metric, row["mean"])]
        cells.append("heavy tail" if row.get("heavy") else f"+- {format_plain(metric, row['ci95'])}")
        if medians:
            cells.append(format_plain(metric, row["median"]))
            cells.append(format_bounds(metric, row["median_low"], row["median_high"]))
        cells += [format_plain("loss", row["loss"]) for _ in losses]
        table.add_row(*cells, style="bold" if row["step"] == reported else "")
    return table


def _set_table(summary: dict[str, Any]) -> Table:
    """The metric on each data set of a mixture."""
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    table.add_column("data set")
    for column in (f"test {summary['metric']}", "tasks"):
        table.add_column(column, justify="right")
    for name, part in summary["by_set"].items():
        table.add_row(name, format_plain(summary["metric"], part["mean"], part["ci95"]), str(part["n_tasks"]))
    table.add_row("mean of the sets", format_plain(summary["metric"], summary["mean"], summary["ci95"]), "")
    return table


def _beside_table(summary: dict[str, Any]) -> Table:
    """Further metrics beside the reported one, of this run and of the best possible predictor."""
    own = {summary["metric"]: summary, **(summary.get("beside") or {})}
    best = summary.get("oracle") or {}
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    table.add_column("on the queries")
    for column in ("this run", "best possible") if best else ("this run",):
        table.add_column(column, justify="right")
    for name in (*own, *(name for name in best if summary.get("beside") and name not in own)):
        unit = "accuracy" if name.startswith("coverage") else name
        found = [side.get(name) for side in ((own, best) if best else (own,))]
        table.add_row(name, *(format_plain(unit, cell["mean"], cell["ci95"]) if cell else "-" for cell in found))
    return table


def _closing_lines(summary: dict[str, Any]) -> list[str]:
    lines = [f"{summary['status']}: {summary['steps_done']} steps, {format_clock(summary['seconds'])} of training"]
    if summary.get("reason"):
        lines.append(summary["reason"])
    if summary.get("curve") and summary.get("best_step"):
        lines[0] += f", tested the checkpoint of step {summary['best_step']} (best validation)"
    lines += sparsity_lines(summary.get("sparsity") or {})
    for name, alarm in (summary.get("alarms") or {}).items():
        once = f"once, at step {alarm['first']}"
        often = f"{alarm['count']} times, steps {alarm['first']} to {alarm['last']}"
        lines.append(f"alarm {name}: {once if alarm['count'] == 1 else often}")
    if summary.get("alarms"):
        tries = f"metarun job=analyze run={summary['run_dir']} analysis=remedy"
        lines.append(f"try what they recommend: {tries}")
    lines.append(f"run folder: {summary['run_dir']}")
    lines += [f"report: {summary['report']}"] if summary.get("report") else []
    if summary["status"] == "interrupted":
        lines.append(f"continue with: metarun resume={summary['run_dir']}")
    return lines


def sparsity_lines(sparsity: dict[str, Any]) -> list[str]:
    """One line with the zeros, for penalties that ask for some."""
    seen = sparsity.get("penalised")
    if not seen:
        return []
    zeros, small = (format_plain("accuracy", seen[key], None) for key in ("zeros_share", "small_share"))
    return [f"zeros: {zeros} of {seen['parameters']} penalised weights; {small} are at most {sparsity['threshold']:g}"]
