r"""Uniform stability, measured: the same training on S and on S with one task replaced.

For each pool size n: the run on S again (`again`: every number must be exactly 0, or the runs are not repeatable), the
run on S with another seed (`seed`: another initialisation and order, the floor that does not depend on the tasks), and
runs on S^(i) for a few i, with the seed and order of the run on S (`replaced`, i in `task`).
metarun/analyses/stability.py has the formulas and sources. The summary's `sup` and `mean` are over the replaced tasks
too. The line ~ 1/n, the rate of the upper bounds for strongly convex losses, is drawn through the first point for
reference only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from metarun.analyses.analysis import Cell, Context, Row, known_values, require_at_least, require_different
from metarun.analyses.figures import finish_sizes, format_number, plot_known
from metarun.analyses.stability import choose_replaced, compare_outcomes, evaluate_last_weights, generalisation_gap
from metarun.errors import require
from metarun.report.figures.drawing import COLOURS, GREY, Drawing, legend_below, panels
from metarun.report.statistics.intervals import t_interval
from metarun.storage.text import count_nouns

AGAIN, SEED, REPLACED = "again", "seed", "replaced"
MEASURES = ("distance", "relative", "mean", "sup", "median")
SUP = {"color": COLOURS[1], "linestyle": (0, (5, 1.5)), "marker": "^", "label": "one task replaced, supremum"}
MEDIAN = {"color": COLOURS[0], "linestyle": "-", "marker": "o", "label": "one task replaced, median task"}
FLOOR = {"color": GREY, "linestyle": (0, (1.5, 1)), "marker": "s", "label": "only the seed changed"}


@dataclass(frozen=True)
class ReplaceOne:
    pools: tuple[int, ...]  # numbers of training tasks
    replaced: int  # tasks of each pool that are replaced, one at a time
    tasks: int  # test episodes

    def __post_init__(self) -> None:
        require_different(self, "pools")
        within = 1 <= self.replaced <= min(self.pools)
        require(within, "replaced", self.replaced, f"must be 1 to {min(self.pools)}, the smallest pool")
        require_at_least(self, tasks=2)

    def cells(self, context: Context) -> Sequence[Cell]:
        context.assemble({"train.pool": self.pools[0], "train.pool_replaced": None})
        cells: list[Cell] = []
        for n in self.pools:
            cells += [{"pool": n, "run": run, "task": None} for run in (AGAIN, SEED)]
            cells += [{"pool": n, "run": REPLACED, "task": i} for i in choose_replaced(self.replaced, n)]
        return cells

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        name, changes = f"pool-{cell['pool']}", {"train.pool": cell["pool"], "train.pool_replaced": None}
        group: dict[str, dict[str, Any]] = {f"{name}-base": changes, f"{name}-{AGAIN}": changes}
        group[f"{name}-{SEED}"] = changes | {"seed": context.config.seed + 1}
        for i in choose_replaced(self.replaced, cell["pool"]):
            group[f"{name}-{REPLACED}-{i}"] = changes | {"train.pool_replaced": i}
        ending = "" if cell["task"] is None else f"-{cell['task']}"
        base_run, run = (context.train_one_of(group, f"{name}-{which}") for which in ("base", f"{cell['run']}{ending}"))
        experiment = context.assemble(changes)
        base, other = (evaluate_last_weights(experiment, r, self.tasks) for r in (base_run, run))
        row = {"diverged": run.diverged, **compare_outcomes(base, other)}
        return row | generalisation_gap(experiment, base) if cell["run"] == AGAIN and base is not None else row

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        pools = [_summarise_pool(n, [r for r in rows if r["pool"] == n]) for n in self.pools]
        repeatable = all(p["repeatable"] for p in pools)
        message = f"change of the query loss when one training task is replaced: {_list_changes(pools, ', ')}"
        if not repeatable:
            message += "; the identical run did not give the same weights, so these are no differences of tasks"
        loss = context.assemble().algorithm.loss
        return {"loss": loss.name, "pools": pools, "repeatable": repeatable, "message": message}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        """Small dots are single replaced tasks. The mean over test tasks is left to the table: a few whose adaptation
        blows up decide it."""
        pools, loss = sorted(summary["pools"], key=lambda p: p["pool"]), summary["loss"]
        figure, (left, middle, right) = panels(3, legend=4, height=2.9)
        sizes = [p["pool"] for p in pools]
        replaced = [r for r in rows if r["run"] == REPLACED]

        def line(axes: Axes, key: str, look: dict[str, Any]) -> None:
            plot_known(axes, sizes, [p[key] for p in pools], **look)

        for axes, key in ((left, "median"), (middle, "relative")):
            pools_of, values = ([r[k] for r in replaced] for k in ("pool", key))
            plot_known(axes, pools_of, values, marker=".", color=COLOURS[5], markersize=4, zorder=1)
        line(left, "sup", SUP)
        line(left, "median", MEDIAN)
        line(left, "floor_median", FLOOR)
        line(middle, "relative", MEDIAN)
        line(middle, "floor_relative", FLOOR)
        known = [p for p in pools if p["median"]]
        if len(known) > 1:
            n = np.array([p["pool"] for p in known], dtype=float)
            left.plot(n, known[0]["median"] * n[0] / n, color="black", linewidth=0.8, label="~ 1/n, for reference")
        gaps = [(p["pool"], p["gap"], p["gap_half"]) for p in pools if p["gap"] is not None]
        if gaps:
            amounts, gap, half = zip(*gaps, strict=True)
            right.errorbar(amounts, gap, yerr=half, fmt="o-", color=COLOURS[2], capsize=3)
        right.axhline(0, color=GREY, linewidth=0.8)
        for axes, title, y, keys in (
            (left, "Change of a test task's query loss", f"change of loss ({loss})", ("median", "sup", "floor_median")),
            (middle, "Distance of the weights", "distance / norm of weights", ("relative", "floor_relative")),
            (right, "Generalisation gap", f"loss on new - on training tasks ({loss})", ("gap",)),
        ):
            shown = np.array([p[k] for p in pools for k in keys if p[k]], dtype=float)
            finish_sizes(axes, title, "training tasks n", y, sizes, shown)
        legend_below(figure, *left.get_legend_handles_labels())
        alt = f"Change of test losses when one training task is replaced. {_list_changes(pools, '. ')}."
        return [Drawing("replace_one", alt, figure)]


def _summarise_pool(pool: int, rows: Sequence[Row]) -> dict[str, Any]:
    """The rows of one pool together; diverged runs have no numbers and are counted."""
    replaced = [r for r in rows if r["run"] == REPLACED]
    found = {k: known_values(replaced, k) for k in MEASURES}
    again, floor = (next(r for r in rows if r["run"] == run) for run in (AGAIN, SEED))
    summary: dict[str, Any] = {"pool": pool, "diverged": sum(r["diverged"] for r in rows), "runs": len(rows)}
    summary |= {k: float(np.mean(v)) if v else None for k, v in found.items() if k != "sup"}
    summary |= {"mean_half": t_interval(found["mean"]).half, "sup": max(found["sup"], default=None)}
    summary |= {f"floor_{k}": floor[k] for k in MEASURES}
    summary["repeatable"] = again["distance"] in (0.0, None)
    return summary | {k: again.get(k) for k in ("new_loss", "own_loss", "gap", "gap_half")}


def _list_changes(pools: Sequence[dict[str, Any]], separator: str) -> str:
    return separator.join(
        f"{count_nouns(p['pool'], 'task')}: median {format_number(p['median'])}, sup {format_number(p['sup'])}"
        for p in pools
    )
