"""What docs/results.json holds, as the tables of the pages: which records a table has, and what its columns say."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, variance
from typing import Any, NamedTuple

from benchmarks.side_by_side import SideBySide
from metarun.report.statistics.intervals import NORMAL_95
from metarun.report.statistics.student import t_quantile
from metarun.storage.published import compare

Record = Mapping[str, Any]
Column = tuple[str, Callable[[Record], str]]

SHORT = 8  # digits of a hash


class Table(NamedTuple):
    page: str  # the file in docs/ that has its markers
    has: Callable[[Record], bool]
    columns: Sequence[Column]

    combines: bool = False  # a line for all seeds of a row, after those of each

    def markdown(self, records: Sequence[Record]) -> str:
        names = [name for name, _ in self.columns]
        shown = list(filter(self.has, records))
        if self.combines:
            rows = [list(seeds) for _, seeds in itertools.groupby(shown, key=lambda r: r["row"])]
            shown = [r for seeds in rows for r in (*seeds, *([over_seeds(seeds)] if len(seeds) > 1 else []))]
        return lines(names, [[cell(r) for _, cell in self.columns] for r in shown])


class Overview(NamedTuple):
    """What was learned by what: a cell for all seeds of a learner and a task."""

    page: str
    has: Callable[[Record], bool]
    row: Callable[[Record], str]
    column: Callable[[Record], str]
    cell: Callable[[Sequence[Record]], str]
    order: Callable[[str], Any]  # of the columns

    def markdown(self, records: Sequence[Record]) -> str:
        cells: dict[tuple[str, str], list[Record]] = {}
        for r in filter(self.has, records):
            cells.setdefault((self.row(r), self.column(r)), []).append(r)
        down, across = sorted({name for name, _ in cells}), sorted({task for _, task in cells}, key=self.order)
        rows = [[name, *(self.cell(cells.get((name, task), [])) for task in across)] for name in down]
        return lines(["", *across], rows)


def lines(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([f"| {' | '.join(names)} |", "|---" * len(names) + "|", *(f"| {' | '.join(r)} |" for r in rows)])


def over_seeds(seeds: Sequence[Record]) -> Record:
    """A line for all seeds of a row: the mean of their means, for new seeds and new tasks.

    variance = s^2 / R + v, with s the deviation of the R means and v the mean of their squared standard errors: the
    seeds share their test tasks, whose part is not made smaller by more seeds. half = t times its root, with the
    degrees of freedom of Satterthwaite.
    """
    means, runs = [r["mean"] for r in seeds], len(seeds)
    of_seeds = variance(means) / runs
    of_tasks = fmean((r["ci95"] / NORMAL_95) ** 2 for r in seeds)
    total = of_seeds + of_tasks
    df = total**2 / (of_seeds**2 / (runs - 1) + of_tasks**2 / (seeds[0]["n_tasks"] - 1))
    half = t_quantile(0.975, df) * math.sqrt(total)
    return dict(seeds[0]) | {
        "seed": f"mean of {runs}",
        "mean": fmean(means),
        "ci95": half,
        "seconds": fmean(r["seconds"] for r in seeds),
    }


# ------------------------------------------------------------------------------------------------- cells


def interval(found: Mapping[str, Any] | None, digits: int = 3, scale: float = 1.0) -> str:
    """A mean with its 95 % interval."""
    if not found:
        return ""
    if found["mean"] is None:
        return "not finite"
    return f"{scale * found['mean']:.{digits}f} +- {scale * found['ci95']:.{digits}f}"


def after(step: int, digits: int = 3) -> Callable[[Record], str]:
    """The test after so many adaptation steps or explored trajectories."""

    def cell(r: Record) -> str:
        row = next((row for row in r["curve"] if row["step"] == step), None)
        if row and row.get("heavy"):
            return "heavy tail" if row["mean"] is None else f"{row['mean']:.{digits}g}, heavy tail"
        return interval(row, digits)

    return cell


def median_after(step: int, digits: int = 3) -> Callable[[Record], str]:
    """The median of the test and its interval; empty for a record of an earlier version."""

    def cell(r: Record) -> str:
        row = next((row for row in r["curve"] if row["step"] == step), {})
        if row.get("median") is None:
            return ""
        if row["median_low"] is None:  # too few tasks for an interval
            return f"{row['median']:.{digits}f}"
        return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(
            *(row[key] for key in ("median", "median_low", "median_high")), d=digits
        )

    return cell


def failed(r: Record) -> str:
    """Tasks that adaptation made worse, or whose error is not finite."""
    errors = r.get("errors")
    return f"{errors['failed']} of {r['n_tasks']}" if errors else ""


def figure(name: str, digits: int = 3, scale: float = 1.0) -> Callable[[Record], str]:
    """One of the test's figures, its headline or one beside it."""

    def cell(r: Record) -> str:
        if r["metric"] != name:
            return interval((r.get("beside") or {}).get(name), digits, scale)
        return "heavy tail" if heavy(r) else interval(r, digits, scale)

    return cell


def likelihood(r: Record) -> str:
    """Of single targets: the headline of a cnp or cvae, beside that of an np or anp."""
    beside = r.get("beside") or {}
    return figure("pointwise_log_likelihood" if "pointwise_log_likelihood" in beside else "log_likelihood")(r)


def printed(r: Record) -> str:
    """The paper's figure, and whether it has an interval."""
    published = r["published"]
    if published["value"] is None:
        return " / ".join(f"{v:g}" for v in published["values"])
    return f"{published['value']:g}" + (f" +- {published['ci95']:g}" if published["ci95"] else ", no interval")


def goal(r: Record) -> str:
    aim = r["published"]["goal"]
    return "" if aim is None else f"{aim:g}: {'reached' if 100 * r['mean'] >= aim else 'missed'}"


def zeros(r: Record) -> str:
    """Of the weights that a penalty is on."""
    penalised = (r.get("sparsity") or {}).get("penalised")
    return f"{100 * penalised['zeros_share']:.1f} %" if penalised else ""


def walked(r: Record) -> str:
    return f"{r['collected']['environment_steps']:,.0f}".replace(",", " ")


def learner(r: Record) -> str:
    return f"`{r['algo']}`" + (", not transductive" if r["norm"] == "joined" else "")


def task(r: Record) -> str:
    return f"{r['ways']}-way {r['shots']}-shot"


def sizes(task: str) -> list[int]:
    """5-way before 20-way."""
    return [int(n) for n in re.findall(r"\d+", task)]


def accuracy(seeds: Sequence[Record]) -> str:
    """The seeds' mean with the published figure."""
    if not seeds:
        return ""
    value = (seeds[0].get("published") or {}).get("value")
    return f"{100 * fmean(r['mean'] for r in seeds):.1f}" + ("" if value is None else f" ({value:g})")


PROBLEMS = {
    "omniglot": "Omniglot",
    "cifar_fs": "CIFAR-FS",
    "sinusoid": "sinusoid, MSE",
    "gp": "Gaussian process, MSE",
    "gp_lengths": "functions of random length scale, log-likelihood",
}
"""What all learners are compared on."""


def random_lengths(r: Record) -> bool:
    return r["data"] == "gp" and r.get("row", "").startswith("gp_lengths_")


def one_length(r: Record) -> bool:
    return r["data"] == "gp" and not random_lengths(r)


def problem(r: Record) -> str:
    name = PROBLEMS["gp_lengths" if random_lengths(r) else r["data"]]
    return f"{name}, {task(r)}" if r["metric"] == "accuracy" else name


def by_problem(title: str) -> tuple[int, list[int]]:
    """Images before functions, and 5-way before 20-way."""
    return next(i for i, name in enumerate(PROBLEMS.values()) if title.startswith(name)), sizes(title)


def compared(r: Record) -> bool:
    """One row of functions for each learner: sinusoids with ten shots."""
    if r["data"] == "sinusoid":
        return r["row"] == f"sinusoid_{r['algo']}"
    return r["data"] in PROBLEMS and not r["row"].startswith(("l1_", "gp_np_"))


def outcome(seeds: Sequence[Record]) -> str:
    """The seeds' mean and minutes: accuracy in per cent, or the MSE."""
    if not seeds:
        return ""
    minutes = f"{fmean(r.get('free_minutes', r['seconds'] / 60) for r in seeds):.0f} min"
    if seeds[0]["metric"] == "accuracy":
        return f"{100 * fmean(r['mean'] for r in seeds):.1f}, {minutes}"
    if random_lengths(seeds[0]):
        return f"{likelihood(seeds[0]).partition(' ')[0]}, {minutes}"
    errors = [r["mean"] if r["metric"] == "mse" else r["beside"]["mse"]["mean"] for r in seeds if not heavy(r)]
    return (f"{fmean(errors):.3f}" if errors else "heavy tail") + f", {minutes}"


def heavy(r: Record) -> bool:
    """Whether the errors of a test have a tail too heavy for a mean."""
    return r.get("headline") == "median"


EXPERIMENT: Column = ("experiment", lambda r: r["row"])
SEED: Column = ("seed", lambda r: str(r["seed"]))
PUBLISHED: Column = ("published", printed)
COST: Column = ("outer steps x tasks", lambda r: f"{r['steps_done']} x {r['tasks_seen'] // max(r['steps_done'], 1)}")
MINUTES: Column = ("minutes", lambda r: f"{r['seconds'] / 60:.1f}")
PRECISION: Column = ("precision", lambda r: r.get("precision", "float32"))


# ------------------------------------------------------------------------------------------------- tables


def of(data: str, *metrics: str) -> Callable[[Record], bool]:
    return lambda r: r["data"] == data and (not metrics or r["metric"] in metrics)


def beside_paper(r: Record) -> bool:
    return of("omniglot")(r) and (r.get("published") or {}).get("value") is not None


def on_alphabets(r: Record) -> bool:
    """Whether the baselines were tested on the same protocol."""
    return of("omniglot")(r) and r["split"] == "vinyals"


def beside_maml(r: Record) -> bool:
    return of("sinusoid")(r) and (r["metric"] == "log_likelihood" or r["algo"] == "maml")


IMAGES = (
    EXPERIMENT,
    SEED,
    ("test accuracy, %", lambda r: interval(r, 2, 100)),
    PUBLISHED,
    ("verdict", lambda r: ", ".join(c.verdict for c in compare(r["published"], r))),
    ("goal", goal),
    COST,
    MINUTES,
    PRECISION,
    ("test tasks x queries", lambda r: f"{r['n_tasks']} x {r['test_queries']}"),
    ("norm", lambda r: str(r["norm"])),
    ("split", lambda r: f"{r['split']} {r['split_sha256'][:SHORT]}"),
    ("episodes", lambda r: r["episodes_sha256"][:SHORT]),
)
SINUSOIDS = Table(
    "results.md",
    of("sinusoid", "mse"),
    (
        EXPERIMENT,
        SEED,
        *((f"MSE after {k}", after(k)) for k in (0, 1, 5, 10)),
        ("published", lambda r: printed(r).removesuffix(", no interval")),
        ("median after 10", median_after(10)),
        ("tasks failed", failed),
        COST,
        MINUTES,
    ),
)
FUNCTIONS = (
    EXPERIMENT,
    SEED,
    ("log-likelihood of a target", likelihood),
    ("of all together", figure("joint_log_likelihood")),
    ("of the context", figure("context_log_likelihood")),
    ("MSE", figure("mse")),
    ("inside the 90 % band, %", figure("coverage_90", 1, 100)),
    COST,
    MINUTES,
)
EXACT: Column = (
    "log-likelihood of the exact posterior",
    lambda r: interval((r.get("oracle") or {}).get("pointwise_log_likelihood")),
)
RETURNS: Sequence[Column] = (
    ("return, none explored", after(0, 2)),
    ("test return", lambda r: interval(r, 2)),
    ("zeros of actor and critics", zeros),
    ("environment steps", walked),
    COST,
    MINUTES,
)
TABLES: Mapping[str, Table | Overview | SideBySide] = {
    "Omniglot, in short": Overview("../README.md", beside_paper, learner, task, accuracy, sizes),
    "Learners": Overview("learners.md", compared, learner, problem, outcome, by_problem),
    "CIFAR-FS, side by side": SideBySide("learners.md", of("cifar_fs"), task, learner),
    "Omniglot, side by side": SideBySide("learners.md", on_alphabets, task, learner),
    "Omniglot": Table("results.md", of("omniglot"), IMAGES, combines=True),
    "CIFAR-FS": Table("results.md", of("cifar_fs"), IMAGES, combines=True),
    "Sinusoids": SINUSOIDS,
    "Gaussian process": Table("generative.md", one_length, FUNCTIONS),
    "Functions of random length scale": Table("generative.md", random_lengths, (*FUNCTIONS, EXACT)),
    "Sinusoids, distributions": Table("generative.md", beside_maml, FUNCTIONS),
    "Completion": Table("generative.md", of("completion"), FUNCTIONS),
    "Point robot": Table(
        "pearl.md",
        of("point_robot"),
        (EXPERIMENT, SEED, ("best possible", lambda r: f"{r['oracle']['return']['mean']:.2f}"), *RETURNS),
    ),
    "Half cheetah": Table("pearl.md", lambda r: r["data"].startswith("halfcheetah"), (EXPERIMENT, SEED, *RETURNS)),
}
