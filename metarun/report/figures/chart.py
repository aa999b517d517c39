"""The numbers of a figure's panels, for a page that draws them again in a browser: values to point at, zoom, smoothing.

A chart has lines over a common kind of x; a line is its records, thinned to `MOST_POINTS`, not its smoothed curve.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from metarun.report.figures.drawing import COLOURS, DASHES, Curve, Look, needs_log_scale
from metarun.storage.text import shorten

MOST_POINTS = 500
LONG_FALL = 8  # times the median, from which a curve of positive values flattens its own end on a linear axis


class Series(NamedTuple):
    label: str
    x: np.ndarray
    y: np.ndarray
    colour: str = COLOURS[0]
    dashed: bool = False
    noisy: bool = False  # one record after another: to be smoothed
    low: np.ndarray | None = None  # of a band
    high: np.ndarray | None = None


class Chart(NamedTuple):
    title: str
    x: str
    y: str
    series: Sequence[Series]
    marks: Sequence[tuple[float, str]] = ()  # x, and what is there
    references: Sequence[tuple[float, str]] = ()  # y, and what it means


def chart_line(label: str, curve: Curve, look: Look, noisy: bool = False, **band: np.ndarray) -> Series:
    return Series(label, *curve, look.colour, look.dash != DASHES[0], noisy, **band)


def to_json(charts: Iterable[Chart]) -> str:
    """The charts as JSON; what is not finite is null."""
    return json.dumps([_plain(chart) for chart in charts], ensure_ascii=True, separators=(",", ":"), allow_nan=False)


def _plain(chart: Chart) -> Mapping[str, Any]:
    shown = [np.asarray(s.y, dtype=float) for s in chart.series]
    return {
        "title": shorten(chart.title, 80),
        "x": shorten(chart.x, 60),
        "y": shorten(chart.y, 60),
        "log": needs_log_scale(shown) or any(map(_flattens, shown)),
        "series": [_plain_series(s) for s in chart.series if len(s.x)],
        "marks": [[float(x), shorten(text, 60)] for x, text in chart.marks if math.isfinite(x)],
        "references": [[float(y), shorten(text, 60)] for y, text in chart.references if math.isfinite(y)],
    }


def _flattens(y: np.ndarray) -> bool:
    """Whether a few large values of a positive curve take most of a linear axis."""
    y = y[np.isfinite(y)]
    return bool(len(y) > 4 and y.min() > 0 and y.max() > LONG_FALL * np.median(y))


def _plain_series(s: Series) -> Mapping[str, Any]:
    order = np.argsort(np.asarray(s.x, dtype=float), kind="stable")
    each = -(-len(order) // MOST_POINTS)
    found: dict[str, Any] = {"label": shorten(s.label, 60), "colour": s.colour, "dashed": s.dashed, "noisy": s.noisy}
    parts = {"x": s.x, "y": s.y, "low": s.low, "high": s.high}
    found |= {k: _thin(np.asarray(v, dtype=float)[order], each) for k, v in parts.items() if v is not None}
    return found


def _thin(values: np.ndarray, each: int) -> list[float | None]:
    """Means of `each` consecutive values, to six digits."""
    parts = values.reshape(-1, 1) if each == 1 else [values[at : at + each] for at in range(0, len(values), each)]
    means = (float(np.mean(part)) for part in parts)
    return [float(f"{mean:.6g}") if math.isfinite(mean) else None for mean in means]
