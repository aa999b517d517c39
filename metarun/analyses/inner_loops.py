r"""Inner loops against one another: gradient descent (MAML) against a proximal objective (iMAML), on the same tasks.

A cell is a variant of the inner loop and a seed, which draws the n tasks of the pool, the initial weights and the
order of the tasks. It trains on the pool S, on S with one task replaced (for each of a few tasks, the seed as before),
and on S with another seed: the floor, which does not depend on the tasks. metarun/analyses/stability.py has the
formulas; `change_mean` is the mean over the replaced tasks i of the mean over test tasks, `change_median` of the
median, which a few test tasks whose adaptation blows up do not move, and `change_sup` the supremum over tasks and i.
`rate_curvature` is that of the run on S, at its last good weights if it diverged. Cost per task of an outer step:

    inner gradients      K
    Hessian products     K for gradients through the inner loop, 0 for first-order ones; the steps of conjugate gradient
                         for the implicit ones
    cpu_seconds          of this process for one training with its validation and test; the median over the trainings,
                         so that a compilation is left out. Those that diverged or were stopped have none. Trainings
                         side by side have their share, which is less: device.side_by_side=off gives that of one alone

Symbols: K `inner_steps`, lambda `prox`. Intervals over seeds are Student's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from metarun.analyses import stability
from metarun.analyses.analysis import Cell, Context, Row, known_values, require_at_least
from metarun.analyses.figures import FAR, format_number, plot_known
from metarun.analyses.stability import choose_replaced, compare_outcomes, evaluate_last_weights
from metarun.errors import UserError, nearest, require
from metarun.report.figures.drawing import COLOURS, GREY, Drawing, look, needs_log_scale, plain
from metarun.report.statistics.intervals import t_interval
from metarun.report.statistics.multiple import holm, paired_test
from metarun.storage.text import axis_label, count_nouns, display_scale
from metarun.types import AlgorithmOptions, optional

FLOOR_SEED = 1000
"""Added to the seed of a run for the floor."""

RECORDED = ("contraction", "stationarity", "cg_residual", "cg_negative")
AVERAGED = (
    *("test", "test_median", "gap", "change_mean", "change_median", "floor_mean", "floor_median"),
    *("relative", "floor_relative", "contraction", "rate_curvature"),
)
CAP = 1000.0
"""The largest change of loss that is drawn; adaptation to some test tasks blows up, and its loss has no bound."""


@dataclass(frozen=True)
class InnerLoops:
    learners: dict[str, Any]  # name -> {algo: settings}
    variants: tuple[Any, ...]  # {name, learner, settings}
    shared: dict[str, Any]  # settings of every variant's learner
    pool: int  # training tasks
    seeds: int
    replaced: int  # tasks of the pool that are replaced, one at a time
    tasks: int  # test episodes

    def __post_init__(self) -> None:
        names = [v.get("name") for v in self.variants]
        different = bool(names) and len(set(map(_folder_name, names))) == len(names)
        require(different, "variants", names, "must have names of their own")
        for learner in (v.get("learner") for v in self.variants):
            require(learner in self.learners, "variants", learner, nearest(str(learner), self.learners))
        within = 1 <= self.replaced <= self.pool
        require(within, "replaced", self.replaced, f"must be 1 to {self.pool}, the pool's size")
        require_at_least(self, seeds=1)

    def cells(self, context: Context) -> Sequence[Cell]:
        """Wrong settings of any variant are refused before the first training."""
        for variant in self.variants:
            context.assemble(self.changes(variant, 0))
        return [{"variant": v["name"], "seed": s} for v in self.variants for s in range(self.seeds)]

    def changes(self, variant: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """The learner as a whole, then one setting at a time, so that an unknown one is refused by name."""
        algo = dict(self.learners[variant["learner"]]["algo"])
        settings = {**self.shared, **variant.get("settings", {})}
        pool = {"train.pool": self.pool, "train.pool_seed": seed, "seed": seed}
        return {"algo": algo, **{f"algo.{k}": v for k, v in settings.items()}, **pool}

    def trainings(self, variant: Mapping[str, Any], seed: int) -> dict[str, dict[str, Any]]:
        """Folder -> changed settings of each training of a cell: on S, with a task replaced, and of another seed."""
        kinds: dict[str, dict[str, Any]] = {"base": {}}
        kinds |= {f"replaced-{i}": {"train.pool_replaced": i} for i in choose_replaced(self.replaced, self.pool)}
        kinds["floor"] = {"seed": seed + FLOOR_SEED}
        stem, changes = f"{_folder_name(variant['name'])}-seed-{seed}", self.changes(variant, seed)
        return {f"{stem}-{kind}": changes | more for kind, more in kinds.items()}

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        variant = next(v for v in self.variants if v["name"] == cell["variant"])
        experiment = context.assemble(self.changes(variant, cell["seed"]))
        group = {name: run for seed in range(self.seeds) for name, run in self.trainings(variant, seed).items()}
        runs = [context.train_one_of(group, name) for name in self.trainings(variant, cell["seed"])]
        base, *replaced, floor = (evaluate_last_weights(experiment, run, self.tasks) for run in runs)
        row: dict[str, Any] = {"runs": len(runs), "diverged": sum(r.diverged for r in runs)}
        if base is not None:
            row |= {"test": float(base.new_scores.mean()), "test_median": float(base.new_scores.median())}
            row["not_finite"] = int((~base.new.isfinite()).sum())
            row |= stability.generalisation_gap(experiment, base)
        changed = [compare_outcomes(base, other) for other in replaced]
        changed = [c for c in changed if not math.isnan(c["distance"])]  # NaN: one of the two diverged
        for name, key in (
            ("distance", "distance"), ("relative", "relative"), ("change_mean", "mean"), ("change_median", "median"),
        ):  # fmt: skip
            row[name] = float(np.mean([c[key] for c in changed])) if changed else math.nan
        row["change_sup"] = max((c["sup"] for c in changed), default=math.nan)
        row |= {f"floor_{k}": v for k, v in compare_outcomes(base, floor).items()}
        row |= stability.read_last_record(runs[0], RECORDED)
        row |= stability.measure_rate_curvature(experiment, runs[0])
        cost = ("inner_steps", "cg_steps", "first_order")
        steps, products, first_order = (optional(experiment.algorithm, AlgorithmOptions, name) for name in cost)
        if products is None:
            products = 0 if first_order else steps
        row |= {"inner_gradients": steps, "hessian_products": products}
        seconds = [r.cpu_seconds for r in runs if r.cpu_seconds is not None and not r.diverged]
        return row | {"cpu_seconds": float(np.median(seconds)) if seconds else None}

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        loss = context.assemble(self.changes(self.variants[0], 0)).algorithm.loss
        names = [v["name"] for v in self.variants]
        variants = [_summarise_variant(name, [r for r in rows if r["variant"] == name]) for name in names]
        finished = [v for v in variants if v["test"]["mean"] is not None and v["change_median"]["mean"] is not None]
        message, tests = "every variant diverged", {}
        if finished:
            score = "test" if loss.higher_is_better else "test_median"  # a few tasks decide the mean of an error
            best = (max if loss.higher_is_better else min)(finished, key=lambda v: v[score]["mean"])
            stable = min(finished, key=lambda v: v["change_median"]["mean"])
            what = f"{'mean' if score == 'test' else 'median task'} {best[score]['mean']:.3g}"
            message = (
                f"best test {loss.metric}: {best['name']} ({what}); least changed by another "
                f"training task: {stable['name']} (median change of loss {stable['change_median']['mean']:.3g})"
            )
            tests = compare_variants(rows, names, best["name"], score)
            message = "\n".join([message, *(_describe_test(name, found) for name, found in tests.items())])
        summary = {"metric": loss.metric, "higher_is_better": loss.higher_is_better, "pool": self.pool}
        return summary | {"variants": variants, "tests": tests, "message": message}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        return [draw_variants(rows, summary), draw_scatter(rows, summary)]


def _folder_name(name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"analysis.variants: {name!r} is no name of a variant")
    return re.sub(r"[^\w.=-]+", "_", name, flags=re.UNICODE)


def _summarise_variant(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    summary: dict[str, Any] = {"name": name, "seeds": len(rows)}
    for key in AVERAGED:
        values = known_values(rows, key)
        mean, half = t_interval(values)
        summary[key] = {"mean": None if math.isnan(mean) else mean, "half": half, "seeds": len(values)}
    seconds = known_values(rows, "cpu_seconds")
    summary["change_sup"] = max(known_values(rows, "change_sup"), default=None)
    summary["diverged"] = sum(r["diverged"] for r in rows) / sum(r["runs"] for r in rows)
    summary["cpu_seconds"] = float(np.median(seconds)) if seconds else None
    return summary | {k: rows[0][k] for k in ("inner_gradients", "hessian_products")}


def compare_variants(rows: Sequence[Row], names: Sequence[str], best: str, score: str) -> dict[str, dict[str, float]]:
    """Each other variant less the best one, by seed: difference, its half-width, p and p corrected by Holm's method.
    Seeds that one of the two lost count for neither."""
    by_seed = {
        name: {r["seed"]: r[score] for r in rows if r["variant"] == name and r.get(score) is not None} for name in names
    }
    tests = {}
    for name in names:
        seeds = [seed for seed in by_seed[name] if seed in by_seed[best]]
        if name != best and seeds:
            tests[name] = paired_test(*([by_seed[which][seed] for seed in seeds] for which in (name, best)))
    corrected = holm([test.p for test in tests.values()])
    return {name: test._asdict() | {"holm": p} for (name, test), p in zip(tests.items(), corrected, strict=True)}


def _describe_test(name: str, found: Mapping[str, float]) -> str:
    if math.isnan(found["p"]):
        return f"{name}: {found['difference']:+.3g} with one seed, no test"
    seeds = count_nouns(int(found["pairs"]), "seed")
    return f"{name}: {found['difference']:+.3g} +- {found['half']:.2g} ({seeds}), p = {found['holm']:.2g} corrected"


def draw_variants(rows: Sequence[Row], summary: dict[str, Any]) -> Drawing:
    """A line a variant, the first one on top; dots are seeds, bars Student's 95 % intervals over them. An arrow at the
    end of an axis is a value beyond it."""
    variants, metric = summary["variants"], summary["metric"]
    scale, name, lines = display_scale(metric), axis_label(metric), range(len(variants))
    figure = Figure(figsize=(10.4, 2.0 + 0.76 * len(variants)), layout="constrained")
    score, gap, change, distance, curvature, cost = figure.subplots(2, 3, sharey=True).ravel()
    shown, other = ("test", "test_median") if summary["higher_is_better"] else ("test_median", "test")
    of_shown, of_other = ("mean", "median task") if shown == "test" else ("median task", "mean of tasks")
    for axes, key, title, label in (
        (score, shown, f"Test {name}, {of_shown}", f"{name} of new tasks, last weights"),
        (gap, "gap", "Generalisation gap", "loss on new tasks - on training tasks"),
        (change, "change_median", "Change of test losses", "change of the median task's query loss"),
        (distance, "relative", "Distance of the weights", "distance / norm of weights"),
        (curvature, "rate_curvature", "Inner rate x largest eigenvalue", "after training"),
    ):
        _draw_intervals(axes, rows, variants, key, scale if axes is score else 1.0)
        axes.set(title=title, xlabel=label)
    beside = [None if v[other]["mean"] is None else scale * v[other]["mean"] for v in variants]
    diamond = {"markersize": 4.5, "color": COLOURS[3], "markerfacecolor": "white"}
    plot_known(score, beside, lines, marker="D", **diamond, label=of_other)
    sups = [v["change_sup"] for v in variants]
    label = "supremum over test tasks"
    plot_known(change, sups, lines, marker="^", markersize=4.5, color=COLOURS[1], label=label)
    floor: dict[str, Any] = {"markersize": 9, "color": GREY}
    medians = [v["floor_median"]["mean"] for v in variants]
    plot_known(change, medians, lines, marker="|", **floor, label="where only the seed changed")
    plot_known(distance, [v["floor_relative"]["mean"] for v in variants], lines, marker="|", **floor)
    _draw_cost(cost, variants)
    gap.axvline(0, color=GREY, linewidth=0.8)
    label = "stability limit of a quadratic"
    curvature.axvline(2, color=COLOURS[3], linewidth=0.9, linestyle=(0, (5, 1.5)), label=label)
    score.set_ylim(len(variants) - 0.5, -0.5)
    for left in (score, distance):
        lost = (f"\n{v['diverged']:.0%} of runs diverged" if v["diverged"] else "" for v in variants)
        left.set_yticks(lines, [plain(v["name"]) + ending for v, ending in zip(variants, lost, strict=True)])
    for axes in (score, change, distance, curvature):
        _set_log_scale(axes)
    _limit_to_seeds(gap, known_values(rows, "gap"))
    _limit_to_seeds(score, known_values(rows, shown, scale))
    low, high = change.get_xlim()
    change.set_xlim(max(low, CAP * 1e-7), min(high, CAP))
    _mark_beyond(change, sups, COLOURS[1])
    _mark_beyond(score, beside, COLOURS[3])
    _mark_beyond(gap, [v["gap"]["mean"] for v in variants], COLOURS[0])
    handles: dict[str, Any] = {}
    for axes in (score, change, curvature, cost):
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3)
    values = " ".join(f"{v['name']}: {format_number(v['test']['mean'])}." for v in variants)
    return Drawing("variants", f"Test {metric} of each inner loop. {values}", figure)


def draw_scatter(rows: Sequence[Row], summary: dict[str, Any]) -> Drawing:
    """A point a variant and seed."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    known = [r for r in rows if r.get("gap") is not None and r["change_median"] is not None]
    for i, variant in enumerate(summary["variants"]):
        found = [r for r in known if r["variant"] == variant["name"]]
        shown = look(i)
        x, y = ([r[key] for r in found] for key in ("change_median", "gap"))
        axes.plot(x, y, shown.marker, color=shown.colour, markersize=6, label=plain(variant["name"]) if found else None)
    changes = [r["change_median"] for r in known]
    if needs_log_scale([np.array(changes)]) or (len(changes) > 1 and max(changes) > 5 * min(changes) > 0):
        _set_log_scale(axes)
    axes.axhline(0, color=GREY, linewidth=0.8)
    gaps = np.array([r["gap"] for r in known])
    far = abs(gaps) > FAR * np.median(abs(gaps)) if len(gaps) else gaps > 0
    if far.any():  # at the edge of the axis, which they would take for themselves
        room = 0.1 * float(np.ptp(gaps[~far]))
        axes.set_ylim(gaps[~far].min() - room, gaps[~far].max() + 2 * room)
        above = [r["change_median"] for r, out in zip(known, far, strict=True) if out and r["gap"] > 0]
        edge = axes.get_xaxis_transform()
        axes.plot(above, [0.97] * len(above), "^", color="black", transform=edge, label="beyond the axis")
    axes.set(xlabel="change of the median test task's query loss, one training task replaced")
    axes.set_ylabel("loss on new tasks - on training tasks")
    axes.set_title("Stability and generalisation gap, a point a seed")
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside right upper")
    return Drawing("gap", "Generalisation gap against the change of test losses on replacing a task.", figure)


def _draw_intervals(axes: Axes, rows: Sequence[Row], variants: Sequence[Row], key: str, scale: float) -> None:
    """The seeds of each variant, their mean and its interval."""
    for y, variant in enumerate(variants):
        seeds = known_values([r for r in rows if r["variant"] == variant["name"]], key, scale)
        label = {"seed": None, "mean": None} if y else {"seed": "one seed", "mean": "mean over seeds, 95 % interval"}
        axes.plot(seeds, [y] * len(seeds), ".", color=COLOURS[5], markersize=5, zorder=1, label=label["seed"])
        mean, half = variant[key]["mean"], variant[key]["half"]
        if mean is not None:
            half = scale * half if half is not None and np.isfinite(half) else 0
            axes.errorbar(scale * mean, y, xerr=half, fmt="o", color=COLOURS[0], capsize=3, label=label["mean"])


def _draw_cost(axes: Axes, variants: Sequence[Row]) -> None:
    """Evaluations per task of an outer step, and the seconds of a training beside them."""
    gradients, products = (np.array([v[k] for v in variants]) for k in ("inner_gradients", "hessian_products"))
    axes.barh(range(len(variants)), gradients, color=COLOURS[0], height=0.6, label="inner gradients")
    hatched: dict[str, Any] = {"color": COLOURS[4], "hatch": "//", "edgecolor": "white"}
    axes.barh(range(len(variants)), products, left=gradients, height=0.6, label="Hessian products", **hatched)
    for y, variant in enumerate(variants):
        if variant["cpu_seconds"] is not None:
            axes.text(gradients[y] + products[y], y, f" {variant['cpu_seconds']:.1f} s", va="center", fontsize=7)
    axes.set_xlim(0, 1.25 * max(gradients + products))
    axes.set_title("Cost")
    axes.set_xlabel("evaluations per task and outer step; CPU s of a run")


def _set_log_scale(axes: Axes) -> None:
    low, high = axes.dataLim.intervalx
    if not 0 < high < np.inf:  # nothing was drawn
        return
    axes.set_xscale("log", nonpositive="clip")
    subs = (1.0, 2.0, 5.0) if high < 300 * max(low, 1e-30) else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _mark_beyond(axes: Axes, values: Sequence[float | None], colour: str) -> None:
    """An arrow at the end of the axis for each value that lies beyond it."""
    for y, value in enumerate(values):
        if value is not None and value > axes.get_xlim()[1]:
            axes.plot(0.97, y, ">", color=colour, transform=axes.get_yaxis_transform())


def _limit_to_seeds(axes: Axes, seeds: Sequence[float]) -> None:
    """Limits that all seeds but the far ones need; an interval may be many times as wide, and goes on outside."""
    values = np.array(seeds)
    if len(values):
        values = values[abs(values) <= FAR * np.median(abs(values))]
    if axes.get_xscale() == "log":
        values = np.log(values[values > 0])
    if len(values):
        room = 0.3 * max(float(np.ptp(values)), 1e-9 + 0.1 * float(np.abs(values).max()))
        ends = np.array([values.min() - room, values.max() + room])
        axes.set_xlim(*(np.exp(ends) if axes.get_xscale() == "log" else ends))
