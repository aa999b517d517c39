"""Colours for a benchmark's validation figures: dark the best, light the worst."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import matplotlib

from metarun.report.compare.axes import spans_decade
from metarun.report.compare.combinations import Benchmark
from metarun.storage.text import higher_is_better

PALEST = 0.9  # of the scale: beyond it, lines are lost on white paper


class Shade(NamedTuple):
    """A scale of figures from its low to its high end."""

    low: float
    high: float
    logarithmic: bool
    best_is_high: bool

    def place(self, value: float) -> float:
        return place(self.low, self.high, self.logarithmic, value)

    def colour(self, value: float) -> Any:
        return matplotlib.colormaps["viridis"](PALEST * self._light(value))

    def ink(self, value: float) -> str:
        """What is read on it."""
        return "white" if self._light(value) < 0.65 else "black"

    def _light(self, value: float) -> float:
        return 1 - self.place(value) if self.best_is_high else self.place(value)


def place(low: float, high: float, logarithmic: bool, value: float) -> float:
    """0 at the low end, 1 at the high one; one half where both are the same."""
    low, high, value = (math.log(v) if logarithmic else v for v in (low, high, value))
    return (value - low) / (high - low) if high > low else 0.5


def shade_of(benchmark: Benchmark) -> Shade:
    """Logarithmic where the figures are positive and span more than a decade."""
    means = [row.validation.mean for row in benchmark.rows if math.isfinite(row.validation.mean)]
    low, high = min(means), max(means)
    return Shade(low, high, spans_decade(low, high), higher_is_better(benchmark.metric))
