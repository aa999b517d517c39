r"""Uniform stability, measured: the same training on S and on S with one task exchanged.

For each pool size n: the run on S again (`again`: every number must be exactly 0, or the runs are not repeatable), the
run on S with another seed (`seed`: another initialisation and order, the floor that says how much does not depend on
the tasks), and runs on S^(i) for a few i, with the seed and order of the run on S (`replaced`, i in `task`).
metarun/analyses/stability.py has the formulas and sources. The summary's `sup` and `mean` are over the exchanged tasks
too. The line ~ 1/n, the rate of the upper bounds for strongly convex losses, is drawn through the first point for
reference only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metarun.analyses.context import Context
from metarun.analyses.frame import Cell, Row
from metarun.analyses.replace_one_figure import draw_pools
from metarun.analyses.stability import change, gap, indices, learned
from metarun.errors import require
from metarun.report.figures.drawing import Drawing
from metarun.statistics.intervals import t_interval

AGAIN, SEED, REPLACED = "again", "seed", "replaced"
MEASURES = ("distance", "relative", "mean", "sup", "median")


@dataclass(frozen=True)
class ReplaceOne:
    pools: tuple[int, ...]  # numbers of training tasks
    replaced: int  # tasks of each pool that are exchanged, one at a time
    tasks: int  # test episodes

    def __post_init__(self) -> None:
        sound = bool(self.pools) and min(self.pools) >= 1 and len(set(self.pools)) == len(self.pools)
        require(sound, "pools", list(self.pools), "must be different whole numbers of at least 1")
        within = 1 <= self.replaced <= min(self.pools)
        require(within, "replaced", self.replaced, f"must be 1 to {min(self.pools)}, the smallest pool")
        require(self.tasks >= 2, "tasks", self.tasks, "must be at least 2")

    def cells(self, context: Context) -> Sequence[Cell]:
        context.experiment({"train.pool": self.pools[0], "train.pool_replaced": None})
        return [cell for n in self.pools for cell in self._of_pool(n)]

    def _of_pool(self, pool: int) -> list[Cell]:
        exchanged = indices(self.replaced, pool)
        alike = [{"pool": pool, "run": run, "task": None} for run in (AGAIN, SEED)]
        return [*alike, *({"pool": pool, "run": REPLACED, "task": i} for i in exchanged)]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        changes = {"train.pool": cell["pool"], "train.pool_replaced": None}
        differs: dict[str, Any] = {"train.pool_replaced": cell["task"]}
        if cell["run"] == SEED:
            differs = {"seed": context.config.seed + 1}
        name = f"pool-{cell['pool']}"
        base_run = context.train(f"{name}-base", changes)
        run = context.train(f"{name}-{cell['run']}" + _ending(cell["task"]), changes | differs)
        experiment = context.experiment(changes)
        base, other = (learned(experiment, r, self.tasks) for r in (base_run, run))
        row = {"diverged": run.diverged, **change(base, other)}
        return row | gap(experiment, base) if cell["run"] == AGAIN and base is not None else row

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        loss = context.experiment().algorithm.loss
        told = [_of_pool(n, [r for r in rows if r["pool"] == n]) for n in self.pools]
        exact = all(p["repeatable"] for p in told)
        said = ", ".join(f"{p['pool']} tasks: median {_short(p['median'])}, sup {_short(p['sup'])}" for p in told)
        twice = (
            "" if exact else "; the identical run did not give the same weights, so these are no differences of tasks"
        )
        message = f"change of the query loss when one training task is replaced: {said}{twice}"
        return {"loss": loss.name, "pools": told, "repeatable": exact, "message": message}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Drawing:
        return draw_pools(rows, summary)


def _of_pool(pool: int, rows: Sequence[Row]) -> dict[str, Any]:
    """What the rows of one pool add up to; diverged runs have no numbers and are counted."""
    replaced = [r for r in rows if r["run"] == REPLACED]
    found = {k: [r[k] for r in replaced if r[k] is not None] for k in MEASURES}
    again, floor = (next(r for r in rows if r["run"] == run) for run in (AGAIN, SEED))
    told: dict[str, Any] = {"pool": pool, "diverged": sum(r["diverged"] for r in rows), "runs": len(rows)}
    told |= {k: float(np.mean(v)) if v else None for k, v in found.items() if k != "sup"}
    told |= {"mean_half": t_interval(found["mean"]).half, "sup": max(found["sup"], default=None)}
    told |= {f"floor_{k}": floor[k] for k in MEASURES}
    told["repeatable"] = again["distance"] in (0.0, None)
    return told | {k: again.get(k) for k in ("new_loss", "own_loss", "gap", "gap_half")}


def _ending(task: int | None) -> str:
    return "" if task is None else f"-{task}"


def _short(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"
