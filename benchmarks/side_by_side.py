"""Learners that were tested on the same episodes, beside the best baseline, and what each had after equal time.

difference   mean over test tasks of accuracy - the baseline's, with a paired 95 % interval (statistics/paired.py)
minutes      outer steps x seconds a step on a core that nothing else uses: trainings here share the machine, so a step
             takes the 0.1 quantile of what it took between two records. Without validation, test and compilation
within B     the best validation accuracy among those that cost at most B such minutes
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from metarun.report.read.facts import headline_scores, metric_of, validation_curve
from metarun.report.read.runs import Run
from metarun.report.statistics.paired import compare

Record = Mapping[str, Any]

BASELINES = ("simpleshot", "baseline", "baselinepp")
BUDGETS = (5, 10, 20)


def measure(tested: Run, trained: Run) -> dict[str, Any]:
    """What a record keeps of a run for this table."""
    scores, size = headline_scores(tested), tested.summary.get("ways", 0) * (tested.summary.get("test_queries") or 0)
    accurate = metric_of(tested) == "accuracy" and scores is not None and size > 0
    kept: dict[str, Any] = {"correct": " ".join(f"{count:.0f}" for count in scores * size)} if accurate else {}
    times = sorted((step, spent) for (kind, step), spent in trained.seconds.items() if kind == "train")
    paces = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(times)]
    if not paces:
        return kept
    minutes = float(np.quantile(paces, 0.1)) / 60
    kept["free_minutes"] = round(trained.summary["steps_done"] * minutes, 1)
    curve, best = validation_curve(trained), {}
    for budget in BUDGETS:
        reached = curve["mean"][curve["step"] * minutes <= budget] if curve else np.zeros(0)
        best[str(budget)] = round(float(reached.max()), 2) if len(reached) else None
    return kept | ({"within": best} if accurate else {})


class SideBySide(NamedTuple):
    page: str  # the file in docs/ that has its markers
    has: Callable[[Record], bool]
    task: Callable[[Record], str]
    learner: Callable[[Record], str]

    def markdown(self, records: Sequence[Record]) -> str:
        """A line for each record, those of the same test episodes together, the best first."""
        shown = sorted((r for r in records if self.has(r) and r.get("correct")), key=lambda r: r["episodes_sha256"])
        groups = [list(same) for _, same in itertools.groupby(shown, key=lambda r: r["episodes_sha256"])]
        rows = [row for same in sorted(groups, key=lambda g: (g[0]["ways"], g[0]["shots"])) for row in self._rows(same)]
        names = ["task", "learner", "test accuracy, %", "minus the best baseline, points"]
        names += [*(f"validation within {b} minutes, %" for b in BUDGETS), "minutes"]
        return "\n".join(f"| {' | '.join(row)} |" for row in [names, ["---"] * len(names), *rows])

    def _rows(self, same: Sequence[Record]) -> list[list[str]]:
        baseline = max((r for r in same if r["algo"] in BASELINES), key=lambda r: r["mean"], default=None)
        return [
            [
                self.task(r),
                self.learner(r) + (f", seed {r['seed']}" if r["seed"] else ""),
                f"{100 * r['mean']:.2f} +- {100 * r['ci95']:.2f}",
                difference(r, baseline),
                *within(r),
                f"{r['free_minutes']:.0f}" if "free_minutes" in r else "",
            ]
            for r in sorted(same, key=lambda r: -r["mean"])
        ]


def difference(r: Record, baseline: Record | None) -> str:
    if baseline is None or r is baseline:
        return ""
    a, b = (np.array(record["correct"].split(), dtype=float) for record in (r, baseline))
    found = compare(a, b, higher_is_better=True)
    scale = 100 / (r["ways"] * r["test_queries"])
    return f"{scale * found.difference:+.2f} +- {scale * found.half:.2f}"


def within(r: Record) -> list[str]:
    """Nothing for the test of another row's training, whose validation was on that row's tasks."""
    own = not (r.get("published") or {}).get("trained_as")
    found = [(r.get("within") or {}).get(str(budget)) if own else None for budget in BUDGETS]
    return ["" if best is None else f"{best:.1f}" for best in found]
