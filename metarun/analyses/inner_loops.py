r"""Inner loops against one another: gradient descent (MAML) against a proximal objective (iMAML), on the same tasks.

A cell is a variant of the inner loop and a seed, which draws the n tasks of the pool, the initial weights and the
order of the tasks. It trains on the pool S, on S with one task exchanged (for each of a few tasks, the seed as before),
and on S with another seed: the floor that says how much the outcome depends on what is not the tasks.
metarun/analyses/stability.py defines what is taken of these runs; `change_mean` is the mean over the exchanged tasks i
of the mean over test tasks, `change_median` of the median, which a few test tasks whose adaptation blows up leave
alone, and `change_sup` the supremum over tasks and i. `rate_curvature` is that of the run on S, at its last good
weights where it diverged. Cost per task of an outer step:

    inner gradients      K
    Hessian products     K for gradients through the inner loop, 0 for first-order ones; the steps of conjugate gradient
                         for the implicit ones
    cpu_seconds          of this process for one training with its validation and test; the median over the trainings,
                         so that a compilation is left out. Those that diverged or were stopped have none

Symbols: K `inner_steps`, lambda `prox`. Intervals over seeds are Student's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from metarun.analyses.context import Context, TrainedRun
from metarun.analyses.frame import Cell, Row
from metarun.analyses.inner_loops_figure import draw_scatter, draw_variants
from metarun.analyses.stability import change, curvature, gap, indices, last_record, learned
from metarun.errors import UserError, nearest, require
from metarun.report.figures.drawing import Drawing
from metarun.statistics.intervals import t_interval

ANOTHER = 1000
"""Added to the seed of a run for the floor."""

RECORDED = ("contraction", "stationarity", "cg_residual", "cg_negative")
AVERAGED = (
    *("test", "test_median", "gap", "change_mean", "change_median", "floor_mean", "floor_median"),
    *("relative", "floor_relative", "contraction", "rate_curvature"),
)


@dataclass(frozen=True)
class InnerLoops:
    learners: dict[str, Any]  # name -> {algo: settings}
    variants: tuple[Any, ...]  # {name, learner, settings}
    shared: dict[str, Any]  # settings of every variant's learner
    pool: int  # training tasks
    seeds: int
    replaced: int  # tasks of the pool that are exchanged, one at a time
    tasks: int  # test episodes

    def __post_init__(self) -> None:
        names = [v.get("name") for v in self.variants]
        require(
            bool(names) and len(set(map(_slug, names))) == len(names), "variants", names, "must have names of their own"
        )
        for variant in self.variants:
            known = variant.get("learner") in self.learners
            require(known, "variants", variant.get("learner"), nearest(str(variant.get("learner")), self.learners))
        require(
            1 <= self.replaced <= self.pool, "replaced", self.replaced, f"must be 1 to {self.pool}, the pool's size"
        )
        require(self.seeds >= 1, "seeds", self.seeds, "must be at least 1")

    def cells(self, context: Context) -> Sequence[Cell]:
        """Wrong settings of any variant are refused before the first training."""
        for variant in self.variants:
            context.experiment(self._changes(variant, 0))
        return [{"variant": v["name"], "seed": s} for v in self.variants for s in range(self.seeds)]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        variant = next(v for v in self.variants if v["name"] == cell["variant"])
        if cell["seed"] == 0:
            torch.compiler.reset()  # it keeps eight compiled functions of one source, then gives up compiling
        changes = self._changes(variant, cell["seed"])
        experiment = context.experiment(changes)
        exchanged = {f"replaced-{i}": {"train.pool_replaced": i} for i in indices(self.replaced, self.pool)}
        floor = {"floor": {"seed": cell["seed"] + ANOTHER}}
        stem = f"{_slug(variant['name'])}-seed-{cell['seed']}"
        kinds: dict[str, dict[str, Any]] = {"base": {}} | exchanged | floor
        runs = {k: context.train(f"{stem}-{k}", changes | more) for k, more in kinds.items()}
        states = {k: learned(experiment, run, self.tasks) for k, run in runs.items()}
        base = states["base"]
        told: dict[str, Any] = {"runs": len(runs), "diverged": sum(r.diverged for r in runs.values())}
        if base is not None:
            told |= {"test": float(base.new_scores.mean()), "test_median": float(base.new_scores.median())}
            told["not_finite"] = int((~base.new.isfinite()).sum())
            told |= gap(experiment, base)
        told |= _changes_of([change(base, states[k]) for k in exchanged], change(base, states["floor"]))
        told |= last_record(runs["base"], RECORDED) | curvature(experiment, runs["base"])
        return told | _cost(experiment.algorithm, list(runs.values()))

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        loss = context.experiment(self._changes(self.variants[0], 0)).algorithm.loss
        told = [_of_variant(v["name"], [r for r in rows if r["variant"] == v["name"]]) for v in self.variants]
        sound = [t for t in told if t["test"]["mean"] is not None and t["change_median"]["mean"] is not None]
        summary = {"metric": loss.metric, "higher_is_better": loss.higher_is_better, "pool": self.pool}
        return summary | {"variants": told, "message": _message(sound, loss.metric, loss.higher_is_better)}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        return [draw_variants(rows, summary), draw_scatter(rows, summary)]

    def _changes(self, variant: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """The learner as a whole, then one setting at a time, so that an unknown one is refused by name."""
        algo = dict(self.learners[variant["learner"]]["algo"])
        settings = {**self.shared, **variant.get("settings", {})}
        pool = {"train.pool": self.pool, "train.pool_seed": seed, "seed": seed}
        return {"algo": algo, **{f"algo.{k}": v for k, v in settings.items()}, **pool}


def _changes_of(exchanged: Sequence[Mapping[str, float]], floor: Mapping[str, float]) -> dict[str, float]:
    """Over the exchanged tasks whose training did not diverge, and of the floor."""
    sound = [c for c in exchanged if not math.isnan(c["distance"])]
    told = {k: float(np.mean([c[k] for c in sound])) if sound else math.nan for k in ("distance", "relative")}
    told |= {f"change_{k}": float(np.mean([c[k] for c in sound])) if sound else math.nan for k in ("mean", "median")}
    told["change_sup"] = max((c["sup"] for c in sound), default=math.nan)
    return told | {f"floor_{k}": v for k, v in floor.items()}


def _cost(learner: Any, runs: Sequence[TrainedRun]) -> dict[str, Any]:
    """Per task of an outer step, and of a training."""
    steps = learner.inner_steps
    through = 0 if getattr(learner, "first_order", False) else steps
    seconds = [r.cpu_seconds for r in runs if r.cpu_seconds is not None and not r.diverged]
    cost = {"inner_gradients": steps, "hessian_products": getattr(learner, "cg_steps", through)}
    return cost | {"cpu_seconds": float(np.median(seconds)) if seconds else None}


def _of_variant(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    told: dict[str, Any] = {"name": name, "seeds": len(rows)}
    for key in AVERAGED:
        values = [r[key] for r in rows if r.get(key) is not None]
        mean, half = t_interval(values)
        told[key] = {"mean": None if math.isnan(mean) else mean, "half": half, "seeds": len(values)}
    sups = [r["change_sup"] for r in rows if r.get("change_sup") is not None]
    seconds = [r["cpu_seconds"] for r in rows if r.get("cpu_seconds") is not None]
    told["change_sup"] = max(sups) if sups else None
    told["diverged"] = sum(r["diverged"] for r in rows) / sum(r["runs"] for r in rows)
    told["cpu_seconds"] = float(np.median(seconds)) if seconds else None
    return told | {k: rows[0][k] for k in ("inner_gradients", "hessian_products")}


def _message(told: Sequence[Mapping[str, Any]], metric: str, higher: bool) -> str:
    if not told:
        return "every variant diverged"
    best = (max if higher else min)(told, key=lambda t: t["test"]["mean"])
    still = min(told, key=lambda t: t["change_median"]["mean"])
    return (
        f"best test {metric}: {best['name']} ({best['test']['mean']:.3g}); least changed by another training task: "
        f"{still['name']} (median change of loss {still['change_median']['mean']:.3g})"
    )


def _slug(name: Any) -> str:
    """A folder's name."""
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"analysis.variants: {name!r} is no name of a variant")
    return re.sub(r"[^\w.=-]+", "_", name, flags=re.UNICODE)
