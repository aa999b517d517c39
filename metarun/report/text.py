"""Numbers and names as a reader of the report meets them."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

NOTHING = "\N{EN DASH}"
PERCENT = ("accuracy",)  # figures between 0 and 1 that are shown in per cent; of these more is better
FROM_ZERO = ("log_likelihood", "return")  # of these more is better too, and errors count from 0


def is_number(value: Any) -> TypeGuard[float]:
    """Whether JSON's value is a finite number; true and false are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 4) -> str:
    """So many significant digits; what is no number as it is, nothing as a dash."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    if not is_number(value):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e6):
        return count(value)
    return f"{value:.{digits}g}"


def count(value: Any) -> str:
    """A whole number, its thousands apart."""
    return f"{round(value):,}" if is_number(value) else NOTHING


def unit_of(metric: str) -> str:
    return "%" if metric in PERCENT else ""


def scale_of(metric: str) -> float:
    return 100.0 if metric in PERCENT else 1.0


def higher_is_better(metric: str) -> bool:
    return metric in PERCENT or metric in FROM_ZERO


def of_error(metric: str, error: float) -> float:
    """The figure whose error, of which less is better, is known."""
    return (1 if metric in PERCENT else 0) - error if higher_is_better(metric) else error


def with_unit(metric: str) -> str:
    """The name of an axis or a column: `accuracy, %`, or `MSE`."""
    name = metric.upper() if metric == "mse" else metric.replace("_", "-")
    return f"{name}, %" if metric in PERCENT else name


def metric_name(metric: str) -> str:
    """As it stands in a title."""
    return with_unit(metric).removesuffix(", %")


def figure(metric: str, mean: Any, half: Any = None, unit: bool = True) -> str:
    """`90.15 ± 0.56 %`, or `0.1169 ± 0.0163`."""
    if not is_number(mean):
        return NOTHING
    scale, digits = scale_of(metric), 2 if metric in PERCENT else 4
    interval = f" ± {_fixed(scale * half, digits)}" if is_number(half) else ""
    ending = f" {unit_of(metric)}" if unit and unit_of(metric) else ""
    return f"{_fixed(scale * mean, digits)}{interval}{ending}"


def _fixed(value: float, digits: int) -> str:
    """With so many digits after the point, or in powers of ten where these would say nothing."""
    if value and not 10.0**-digits <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.{digits}f}"


def duration(seconds: Any) -> str:
    """`14 min 31 s`."""
    if not is_number(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def short(name: Any, limit: int = 40) -> str:
    """A name cut to what fits beside a curve; control characters, which have no picture, as code writes them."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(name))
    return text if len(text) <= limit else text[: limit - 1] + "…"
