"""Compare the published metrics of a paper with those of a run.

A row agrees where the two 95 % intervals touch:  |m - p| <= c_m + c_p,  with m and c_m the run's mean and interval over
its test tasks, p and c_p the printed ones (c_p = 0 where none is printed). Accuracies are in per cent, as papers print
them; a regression is compared after each adaptation step that the paper names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from metarun.errors import one_line


class Comparison(NamedTuple):
    """One published metric and the run's own, in the paper's unit."""

    step: int | None  # the adaptation step; None: the run's headline
    published: float
    published_ci95: float
    mean: float
    ci95: float

    @property
    def verdict(self) -> str:
        """inside, above or below the published interval."""
        difference = self.mean - self.published
        if abs(difference) <= self.ci95 + self.published_ci95:
            return "inside"
        return "above" if difference > 0 else "below"


def compare(published: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Comparison]:
    """Compare each published metric that the run has as well."""
    scale = 100.0 if summary["metric"] == "accuracy" else 1.0
    ci95 = published["ci95"] or 0.0
    if published["value"] is not None:
        return [Comparison(None, published["value"], ci95, scale * summary["mean"], scale * summary["ci95"])]
    rows = {row["step"]: row for row in summary["curve"]}
    return [
        Comparison(step, value, ci95, scale * rows[step]["mean"], scale * rows[step]["ci95"])
        for step, value in zip(published["steps"], published["values"], strict=True)
        if step in rows
    ]


def describe(comparisons: list[Comparison], source: str) -> str:
    """Describe comparisons in one line for the terminal."""
    parts = []
    for c in comparisons:
        interval = f" +- {c.published_ci95:g}" if c.published_ci95 else ""
        after = "" if c.step is None else f" after {c.step} steps"
        where = "inside" if c.verdict == "inside" else f"{abs(c.mean - c.published):.2f} {c.verdict}"
        parts.append(f"{c.published:g}{interval}{after} (this is {where})")
    return f"published: {', '.join(parts)}, {one_line(source)}"
