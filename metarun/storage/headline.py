"""The result of a test in words: its headline, and the line beside it that says what the number is worth.

An error measure (MSE) has the median as its headline where its tail is heavy, and else the mean. The line has what
holds in both cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metarun.storage.text import format_metric, is_number, number


def headline(metric: str, summary: Mapping[str, Any], plus_minus: str = "±", missing: str = "not finite") -> str:
    """`97.50 ± 0.30 %`, or `median 0.2031, 0.1802 to 0.2310`."""
    if is_heavy(summary):
        return "median {}, {}".format(*_format_median(metric, summary["errors"]))
    return format_metric(metric, summary.get("mean"), summary.get("ci95"), plus_minus=plus_minus, missing=missing)


def is_heavy(summary: Mapping[str, Any]) -> bool:
    """Whether the headline is the median."""
    return summary.get("headline") == "median" and isinstance(summary.get("errors"), Mapping)


def describe_errors(metric: str, summary: Mapping[str, Any], plus_minus: str = "±") -> str:
    """The line beside the headline of an error measure; empty for other metrics and for runs of earlier versions."""
    errors = summary.get("errors")
    if not isinstance(errors, Mapping):
        return ""
    middle = format_metric(metric, errors.get("iqm"), errors.get("iqm_half"), plus_minus=plus_minus)
    failed = f"{number(errors.get('failed'))} of {number(summary.get('n_tasks'))} tasks failed"
    if not is_heavy(summary):
        return "median {} ({}), ".format(*_format_median(metric, errors)) + f"interquartile mean {middle}, {failed}"
    if errors.get("not_finite"):
        why = f"no mean: {number(errors['not_finite'])} of them have no finite error"
    else:
        index, error = (number(errors.get(key), 2) for key in ("tail_index", "tail_error"))
        mean = format_metric(metric, summary.get("mean"))
        why = (
            f"no interval for the mean {mean}: tail index {index} {plus_minus} {error}; below 2 a tail has no variance"
        )
    return f"interquartile mean {middle}, {failed}, {why}"


def describe_unaveraged(metric: str, summary: Mapping[str, Any], plus_minus: str = "±") -> str:
    """What the meta-parameters themselves reach where their average was tested; empty for other runs."""
    found = summary.get("unaveraged")
    if not isinstance(found, Mapping):
        return ""
    own = format_metric(metric, found.get("mean"), found.get("ci95"), plus_minus=plus_minus, missing="not finite")
    difference = format_metric(metric, found.get("difference"), found.get("difference_ci95"), plus_minus=plus_minus)
    better = format_metric("accuracy", found.get("wins"))
    return f"mean {own}; the average changes it by {difference} (paired), and is better on {better} of the tasks"


def describe_worst(metric: str, summary: Mapping[str, Any], plus_minus: str = "±") -> str:
    """`worst tenth of the tasks: 78.20 ± 0.50 %, worst task: 60.00 %`; empty where the summary has none."""
    found = summary.get("worst_tasks")
    if not isinstance(found, Mapping) or is_heavy(summary):
        return ""
    mean = format_metric(metric, found.get("mean"), found.get("half"), plus_minus=plus_minus)
    return f"worst tenth of the tasks: {mean}, worst task: {format_metric(metric, found.get('worst'))}"


def describe_calibration(summary: Mapping[str, Any], plus_minus: str = "±") -> str:
    """`overconfident by 2.10 ± 0.20 points, calibration error 2.30 %, Brier score 0.0810 ± 0.0020`; empty likewise."""
    found = summary.get("calibration")
    if not isinstance(found, Mapping) or not is_number(found.get("overconfidence")):
        return ""
    over, half = 100 * found["overconfidence"], 100 * found["overconfidence_ci95"]
    side = "over" if over > 0 else "under"
    words = f"{side}confident by {abs(over):.2f} {plus_minus} {half:.2f} points"
    words = words if abs(over) > half else f"confident as it should be, to {half:.2f} points"
    score = format_metric("brier", found.get("brier"), found.get("brier_ci95"), plus_minus=plus_minus)
    return f"{words}; calibration error {format_metric('accuracy', found.get('error'))}, Brier score {score}"


def _format_median(metric: str, errors: Mapping[str, Any]) -> tuple[str, str]:
    """The median and its interval."""
    bounds = format_bounds(metric, errors.get("median_low"), errors.get("median_high"))
    return format_metric(metric, errors.get("median"), missing="not finite"), bounds


def format_bounds(metric: str, low: Any, high: Any) -> str:
    """The interval of a median: `0.1802 to 0.2310`, up to infinity where failed tasks are the bound; too few tasks have
    none."""
    if not is_number(low):
        return "no interval"
    return f"{format_metric(metric, low)} to {format_metric(metric, high, missing='infinity')}"
