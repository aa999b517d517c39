r"""Whether predictions belong to one process: the information of a sample on the order of its targets.

Targets that are predicted one after another, each in the context of the next, have a joint density for each order o:

    p_o(y) = prod_i p(y_{o(i)} | context, the targets before it in o)
    order_information = I(o; y) = mean_o E_{y ~ p_o} log [p_o(y) / (1/G) sum_{o'} p_{o'}(y)]          nats

over G orders, equally likely. Of a consistent process, as a Gaussian process or any exchangeable Bayesian prediction,
all p_o are the same and it is 0; it is at most log G. `order_spread` is the standard deviation over the orders of
log p_o of the task's own targets, per target. Log-likelihoods per target of these:

    sequential     mean_o log p_o(y) / m: one after another
    independent    (1/m) sum_i log p(y_i | context): each by itself; their difference is what autoregression gains
    exact          of the data's own posterior, where it is known: what no learner can exceed on average

m targets, p the Gaussian that the learner predicts for one target (of a latent variable's mixture, the one with its
mean and deviation). Samples of p_o are drawn once for each task and order; intervals are over test tasks, 95 %.

Mlodozeniec, Krueger, Turner 2024, Implicitly Bayesian prediction rules in deep learning (PMLR 253), eq. 5; for neural
processes Mortimer et al. 2026, arXiv 2602.18955; autoregressive use of conditional ones: Bruinsma et al. 2023, arXiv
2303.14468.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from torch import Tensor

from metarun.algorithms.losses import log_density
from metarun.analyses.analysis import Cell, Context, Row, SourceRun, require_at_least
from metarun.compute import random
from metarun.compute.task_axis import map_tasks
from metarun.errors import UserError, require
from metarun.report.figures.drawing import COLOURS, DASHES, GREY, MARKERS, Drawing, finish, panels
from metarun.storage.text import count_nouns
from metarun.training.evaluation import EPISODE_SEED, TASKS_PER_DRAW, mean_and_interval
from metarun.training.experiment import option_name
from metarun.types import AlgorithmOptions, Batch, DatasetOptions, Metrics, Params, Task, optional

SIZES = (1, 2, 5, 10, 20, 50, 100)
LIKELIHOODS = {"sequential": "one after another", "independent": "each by itself", "exact": "exact posterior, together"}
SAMPLING_STEP = 2**42 + 1
"""Beyond every outer step."""


@dataclass(frozen=True)
class Consistency:
    tasks: int
    targets: int
    orders: int
    shots: tuple[int, ...] | None  # of the context; None: 1, 2, 5, 10 ... up to data.shots

    def __post_init__(self) -> None:
        require_at_least(self, tasks=2, targets=2, orders=2)
        most = math.factorial(min(self.targets, 8))
        require(
            self.orders <= most, "orders", self.orders, f"must be at most {most}: {self.targets} targets have no more"
        )
        valid = self.shots is None or (bool(self.shots) and min(self.shots) >= 1)
        require(valid, "shots", self.shots, "must be whole numbers of at least 1, or null")

    def cells(self, context: Context) -> Sequence[Cell]:
        """One cell per size of the context."""
        experiment = context.run.experiment
        if optional(context.run.learner, AlgorithmOptions, "predicts") != "gaussians":
            algo = option_name("algo", experiment.config)
            reason = "predicts no distribution; choose algo=cnp, tnpd, convcnp, np, anp, cvae"
            raise UserError(f"analysis=consistency: algo={algo} {reason}")
        most = experiment.test_spec.shots
        shots = self.shots or tuple(sorted({*(k for k in SIZES if k < most), most}))
        for k in shots:
            experiment.dataset.check("test", experiment.test_spec._replace(shots=k, queries=self.targets))
        return [{"shots": k} for k in shots]

    def measure(self, context: Context, cell: Cell) -> dict[str, Any]:
        orders = draw_orders(self.targets, self.orders)
        found = measure_tasks(context.run, cell["shots"], self.tasks, orders)
        row: dict[str, float] = {}
        for name, values in found.items():
            row[name], row[f"half_{name}"] = mean_and_interval(values)
        return row | {"most": math.log(len(orders))}

    def summarise(self, context: Context, rows: Sequence[Row]) -> dict[str, Any]:
        lines = []
        for row in rows:
            information = f"{row['order_information']:.3g} +- {row['half_order_information']:.2g}"
            line = f"{count_nouns(row['shots'], 'shot')}: a sample of {self.targets} targets has {information} nats "
            line += (
                f"of information on its order (0: consistent, at most {row['most']:.3g}); log-likelihood per target "
            )
            line += f"{row['sequential']:.3f} one after another, {row['independent']:.3f} each by itself"
            line += f" (gain {row['gain']:.3f} +- {row['half_gain']:.2g})"
            lines.append(line + (f", exact posterior {row['exact']:.3f}" if "exact" in row else ""))
        sizes = {"tasks": self.tasks, "targets": self.targets, "orders": self.orders}
        return {**sizes, "message": "\n".join(lines)}

    def draw(self, rows: Sequence[Row], summary: dict[str, Any]) -> Sequence[Drawing]:
        """Left the information, right the log-likelihoods, by the size of the context."""
        drawn, (left, right) = panels(2, columns=2, height=2.9)
        _draw_line(left, rows, "order_information", 0, None)
        if max(row["order_information"] for row in rows) > rows[0]["most"] / 3:  # else it would press the line down
            left.axhline(rows[0]["most"], color=GREY, linewidth=0.8, linestyle="--", label="largest possible")
            left.legend()
        left.set_ylim(bottom=min(0.0, left.get_ylim()[0]))
        _finish(left, rows, "A sample and its order", "information, nats")
        for i, (name, label) in enumerate(LIKELIHOODS.items()):
            if name in rows[0]:
                _draw_line(right, rows, name, i, label)
        right.legend()
        _finish(right, rows, "Targets of the tasks", "log-likelihood per target, nats")
        sizes = f"{summary['orders']} orders of {summary['targets']} targets, {summary['tasks']} test tasks"
        values = " ".join(line.capitalize() + "." for line in summary["message"].splitlines())
        return [Drawing("consistency", f"Predictions one after another, in {sizes}. {values}", drawn)]


def draw_orders(targets: int, count: int) -> Tensor:
    """Different orders of the targets, [G, m]; the same in every call."""
    if count == math.factorial(targets):
        return torch.tensor(list(itertools.permutations(range(targets))))
    generator = torch.Generator().manual_seed(0)
    found: dict[tuple[int, ...], Tensor] = {}
    while len(found) < count:
        order = torch.randperm(targets, generator=generator)
        found[tuple(order.tolist())] = order
    return torch.stack(list(found.values()))


def measure_tasks(run: SourceRun, shots: int, tasks: int, orders: Tensor) -> dict[str, Tensor]:
    """Each measure of the module's docstring, and `gain`, [T]."""
    experiment, placement = run.experiment, run.experiment.placement
    spec = experiment.test_spec._replace(shots=shots, queries=orders.shape[1])
    oracle = optional(experiment.dataset, DatasetOptions, "oracle")
    parts = []
    for start in range(0, tasks, TASKS_PER_DRAW):
        numbers = range(start, min(start + TASKS_PER_DRAW, tasks))
        drawn = experiment.dataset.episodes("test", EPISODE_SEED, 0, numbers, spec)
        part = compare_orders(run, placement.move_task(drawn), numbers, orders)
        exact = oracle("test", EPISODE_SEED, 0, numbers, spec) if oracle else {}
        if "joint_log_likelihood" in exact:
            part["exact"] = exact["joint_log_likelihood"]
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def compare_orders(run: SourceRun, tasks: Task, numbers: range, orders: Tensor) -> dict[str, Tensor]:
    """The measures [T] of tasks with support rows [T, S, .] and targets [T, m, .], in orders [G, m]."""
    count, (G, m) = len(numbers), orders.shape
    y = tasks.query.y
    noise = random.noise(0, SAMPLING_STEP, numbers, G * m * y.shape[-1])
    eps = torch.from_numpy(noise).to(y).view(count, G, m, -1)
    y_TGm = y[:, None].expand(-1, G, -1, -1)

    drawn, _ = _in_order(run, tasks, orders, eps, sample=True)  # each order's own sample
    own = torch.stack([_in_order(run, tasks, orders, drawn[:, [g]].expand_as(y_TGm))[1] for g in range(G)], 1)
    mixture = own.logsumexp(-1) - math.log(G)  # [T, sample, order scored] -> [T, sample]
    information = (own.diagonal(dim1=1, dim2=2) - mixture).mean(1)
    _, observed = _in_order(run, tasks, orders, y_TGm)
    _, alone = _in_order(run, tasks, torch.arange(m)[None], y[:, None], grow=False)
    sequential, independent = observed.mean(1) / m, alone[:, 0] / m
    return {
        "order_information": information,
        "order_spread": observed.std(1) / m,
        "sequential": sequential,
        "independent": independent,
        "gain": sequential - independent,
    }


def _in_order(
    run: SourceRun, tasks: Task, orders: Tensor, y: Tensor, sample: bool = False, grow: bool = True
) -> tuple[Tensor, Tensor]:
    """Targets [T, G, m, d_out] and the sum of their log densities [T, G], predicted in each order. `sample`: y are
    standard normal numbers, of which the targets are made. Without `grow` no target joins the context."""
    learner, (T, G, m) = run.learner, y.shape[:3]

    def one(params: Params, task: Task) -> tuple[Metrics, Metrics]:
        support, (x, given) = task
        found, total = [], given.new_zeros((), dtype=torch.float64)
        for i in range(m):
            mu, sigma = learner.predict(learner.adapt(params, support), x[i : i + 1]).chunk(2, -1)
            target = mu + sigma * given[i : i + 1] if sample else given[i : i + 1]
            total = total + log_density(mu, sigma, target).sum().double()
            found.append(target)
            if grow:
                support = Batch(torch.cat([support.x, x[i : i + 1]]), torch.cat([support.y, target]))
        return {"y": torch.cat(found), "log": total}, {}

    orders = orders.to(y.device)
    place = orders[None, :, :, None].expand(T, -1, -1, -1)
    x = tasks.query.x[:, orders].flatten(0, 1)
    ordered = y.gather(2, place.expand_as(y)).flatten(0, 1)
    support = Batch(*(rows.repeat_interleave(G, 0) for rows in tasks.support))
    placement, spec = run.experiment.placement, run.experiment.test_spec
    chunk = placement.evaluation_chunk(spec, run.experiment.dataset.input_shape())
    with torch.no_grad():
        values, _ = map_tasks(one, T * G, chunk, processes=placement.processes)(
            run.params, Task(support, Batch(x, ordered))
        )
    back = torch.zeros_like(y).scatter(2, place.expand_as(y), values["y"].view_as(y))
    return back, values["log"].view(T, G).cpu()


def _draw_line(axes: Axes, rows: Sequence[Row], name: str, i: int, label: str | None) -> None:
    shots, values, halves = ([row[key] for row in rows] for key in ("shots", name, f"half_{name}"))
    look: dict[str, Any] = {"color": COLOURS[i], "linestyle": DASHES[i], "marker": MARKERS[i]}
    axes.errorbar(shots, values, yerr=halves, capsize=2, label=label, **look)


def _finish(axes: Axes, rows: Sequence[Row], title: str, unit: str) -> None:
    finish(axes, title, "shots of the context", unit)
    if len(rows) > 1:
        shots = [row["shots"] for row in rows]
        axes.set_xscale("log")
        axes.set_xticks(shots, [str(k) for k in shots])
        axes.xaxis.set_minor_locator(NullLocator())
