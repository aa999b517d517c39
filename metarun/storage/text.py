"""Numbers and names as people read them: in a terminal, a log, a table or a figure."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

NOTHING = "\N{EN DASH}"
PERCENT = ("accuracy",)  # metrics between 0 and 1 that are shown in per cent; higher is better
FORMULA = ("=", "+", "-", "@")  # with which a spreadsheet has a formula begin
UNBOUNDED = ("log_likelihood", "return")  # higher is better here too; error = -metric


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a JSON value is a finite number; true and false are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 4) -> str:
    """`value` with `digits` significant digits; a dash for None, NaN and infinity; other values as text."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    if not is_number(value):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e6):
        return count(value)
    return f"{value:.{digits}g}"


def round_digits(value: float) -> float:
    """Seven significant digits: float32 has no more."""
    return float(f"{value:.7g}")


def count(value: Any) -> str:
    """A whole number with thousands separators."""
    return f"{round(value):,}" if is_number(value) else NOTHING


def count_nouns(value: int, one: str, many: str | None = None) -> str:
    """`1 task`, `2 tasks`; `many` is the plural that does not end in s alone."""
    return f"{value} {one if value == 1 else many or one + 's'}"


def display_unit(metric: str) -> str:
    return "%" if metric in PERCENT else ""


def display_scale(metric: str) -> float:
    return 100.0 if metric in PERCENT else 1.0


def higher_is_better(metric: str) -> bool:
    return metric in PERCENT or metric in UNBOUNDED


def metric_from_error(metric: str, error: float) -> float:
    """The metric whose error (lower is better) is given; inverts error = best - metric."""
    return (1 if metric in PERCENT else 0) - error if higher_is_better(metric) else error


def axis_label(metric: str) -> str:
    """The label of an axis or a column: `accuracy, %`, or `MSE`."""
    name = metric.upper() if metric == "mse" else metric.replace("_", "-")
    return f"{name}, %" if metric in PERCENT else name


def difference_label(metric: str, what: str = "difference") -> str:
    """The label of an axis of differences: `difference in accuracy, points`, or `difference in MSE`."""
    name = metric_name(metric)
    return f"{what} in {name}, points" if metric in PERCENT else f"{what} in {name}"


def metric_name(metric: str) -> str:
    """The name for a title: `accuracy`, or `MSE`."""
    return axis_label(metric).removesuffix(", %")


def format_metric(
    metric: str, mean: Any, half: Any = None, unit: bool = True, plus_minus: str = "±", missing: str = NOTHING
) -> str:
    """A metric with half of its interval: `90.15 ± 0.56 %`, or `0.1169 ± 0.0163`."""
    if not is_number(mean):
        return missing
    scale, digits = display_scale(metric), 2 if metric in PERCENT else 4
    interval = f" {plus_minus} {_fixed(scale * half, digits)}" if is_number(half) else ""
    ending = f" {display_unit(metric)}" if unit and display_unit(metric) else ""
    return f"{_fixed(scale * mean, digits)}{interval}{ending}"


def _fixed(value: float, digits: int) -> str:
    """`value` with `digits` decimals, or in powers of ten where these would show nothing."""
    if value and not 10.0**-digits <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.{digits}f}"


def adaptation_unit(kind: Any) -> str:
    """What a test curve counts, by the `kind` of the data."""
    return "explored trajectories" if kind == "control" else "adaptation steps"


def duration(seconds: Any) -> str:
    """`14 min 31 s`."""
    if not is_number(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def file_size(size: float) -> str:
    """`1.5 MB`: bytes in units of 1024."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"


def escape_formula(cell: Any) -> Any:
    """A cell of a csv that a spreadsheet does not compute: a text that begins with =, +, - or @ gets a quote before it,
    unless it is a number. Control characters are escaped."""
    if not isinstance(cell, str):
        return cell
    cell = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in cell)
    if not cell.lstrip().startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def unescape_formula(cell: str) -> str:
    """The text before `escape_formula`, but for control characters."""
    return cell[1:] if cell.startswith("'") and cell[1:].lstrip().startswith(FORMULA) else cell


def shorten(name: Any, limit: int = 40) -> str:
    """`name` cut to `limit` characters, its control characters escaped."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(name))
    return text if len(text) <= limit else text[: limit - 1] + "…"
