"""Compare the published metrics of a paper with those of a run.

A row agrees where a two-sided test of the difference at 5 % does not reject it:

    |m - p| <= sqrt(c_m^2 + c_p^2)

with m and c_m the run's mean and 95 % interval over its test tasks, p and c_p the printed ones (c_p = 0 where none is
printed: the paper's own error is then not known, and the test rejects too often). The square root is 1.96 standard
errors of the difference of two independent means; intervals that merely touch differ by up to 1.41 times that. A mean
of errors with a heavy tail has no interval, and nothing is decided. Accuracies are in per cent, as papers print them; a
regression is compared after each adaptation step that the paper names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from metarun.errors import one_line


class Comparison(NamedTuple):
    """One published metric and the run's own, in the paper's unit."""

    step: int | None  # the adaptation step; None: the run's headline
    published: float
    published_ci95: float  # 0: the paper has none
    mean: float
    ci95: float
    heavy: bool = False  # whether the mean has no interval

    @property
    def verdict(self) -> str:
        """agrees, above, below or undecided."""
        difference = self.mean - self.published
        if self.heavy:
            return "undecided"
        if abs(difference) <= math.hypot(self.ci95, self.published_ci95):
            return "agrees"
        return "above" if difference > 0 else "below"


def compare(published: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Comparison]:
    """Compare each published metric that the run has as well."""
    scale = 100.0 if summary["metric"] == "accuracy" else 1.0
    ci95 = published["ci95"] or 0.0
    if published["value"] is not None:
        heavy = summary.get("headline") == "median"
        return [_compare_one(None, published["value"], ci95, scale, summary, heavy)]
    rows = {row["step"]: row for row in summary["curve"]}
    return [
        _compare_one(step, value, ci95, scale, rows[step], rows[step].get("heavy", False))
        for step, value in zip(published["steps"], published["values"], strict=True)
        if step in rows
    ]


def _compare_one(
    step: int | None, value: float, ci95: float, scale: float, found: Mapping[str, Any], heavy: bool
) -> Comparison:
    mean, half = (math.nan if found[key] is None else scale * found[key] for key in ("mean", "ci95"))
    return Comparison(step, value, ci95, mean, half, heavy or not math.isfinite(half))


def describe(comparisons: list[Comparison], source: str) -> str:
    """Describe comparisons in one line for the terminal."""
    parts = []
    for c in comparisons:
        interval = f" +- {c.published_ci95:g}" if c.published_ci95 else " (no interval)"
        after = "" if c.step is None else f" after {c.step} steps"
        where = {
            "agrees": "this agrees",
            "undecided": "undecided: this mean has no interval",
        }.get(c.verdict, f"this is {abs(c.mean - c.published):.2f} {c.verdict}")
        parts.append(f"{c.published:g}{interval}{after}, {where}")
    return f"published: {'; '.join(parts)}; {one_line(source)}"
