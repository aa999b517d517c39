"""What a paper reports, beside what a run reached.

A row agrees where the two 95 % intervals touch:  |m - p| <= c_m + c_p,  with m and c_m the run's mean and interval over
its test tasks, p and c_p the printed ones (c_p = 0 where none is printed). Accuracies are in per cent, as papers print
them; of a regression the figures are those after each adaptation step that the paper names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from metarun.errors import one_line


class Comparison(NamedTuple):
    """One published figure and the run's own, in the paper's unit."""

    step: int | None  # the adaptation step; None: the run's headline
    published: float
    published_ci95: float
    mean: float
    ci95: float

    @property
    def verdict(self) -> str:
        """inside, above or below, of the published interval."""
        apart = self.mean - self.published
        if abs(apart) <= self.ci95 + self.published_ci95:
            return "inside"
        return "above" if apart > 0 else "below"


def compared(published: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Comparison]:
    """The published figures that the run has a counterpart of."""
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


def described(comparisons: list[Comparison], source: str) -> str:
    """One line for the terminal."""
    parts = []
    for c in comparisons:
        interval = f" +- {c.published_ci95:g}" if c.published_ci95 else ""
        after = "" if c.step is None else f" after {c.step} steps"
        where = "inside" if c.verdict == "inside" else f"{abs(c.mean - c.published):.2f} {c.verdict}"
        parts.append(f"{c.published:g}{interval}{after} (this is {where})")
    return f"published: {', '.join(parts)}, {one_line(source)}"
