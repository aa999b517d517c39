"""What docs/results.json holds, as the tables of the pages: which records a table has, and what its columns say."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from metarun.storage.published import compare

Record = Mapping[str, Any]
Column = tuple[str, Callable[[Record], str]]

SHORT = 8  # digits of a hash


class Table(NamedTuple):
    page: str  # the file in docs/ that has its markers
    has: Callable[[Record], bool]
    columns: Sequence[Column]

    def markdown(self, records: Sequence[Record]) -> str:
        names = [name for name, _ in self.columns]
        return lines(names, [[cell(r) for _, cell in self.columns] for r in records if self.has(r)])


class Overview(NamedTuple):
    """What was learned by what: a cell for all seeds of a learner and a task."""

    page: str
    has: Callable[[Record], bool]
    row: Callable[[Record], str]
    column: Callable[[Record], str]
    cell: Callable[[Sequence[Record]], str]

    def markdown(self, records: Sequence[Record]) -> str:
        cells: dict[tuple[str, str], list[Record]] = {}
        for r in filter(self.has, records):
            cells.setdefault((self.row(r), self.column(r)), []).append(r)
        down, across = sorted({name for name, _ in cells}), sorted({task for _, task in cells}, key=sizes)
        rows = [[name, *(self.cell(cells.get((name, task), [])) for task in across)] for name in down]
        return lines(["", *across], rows)


def lines(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([f"| {' | '.join(names)} |", "|---" * len(names) + "|", *(f"| {' | '.join(r)} |" for r in rows)])


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
    return lambda r: interval(next((row for row in r["curve"] if row["step"] == step), None), digits)


def figure(name: str, digits: int = 3, scale: float = 1.0) -> Callable[[Record], str]:
    """One of the test's figures, its headline or one beside it."""
    return lambda r: interval(r if r["metric"] == name else (r.get("beside") or {}).get(name), digits, scale)


def likelihood(r: Record) -> str:
    """Of single targets: the headline of a cnp or cvae, beside that of an np or anp."""
    beside = r.get("beside") or {}
    return figure("pointwise_log_likelihood" if "pointwise_log_likelihood" in beside else "log_likelihood")(r)


def printed(r: Record) -> str:
    """The paper's figure."""
    published = r["published"]
    if published["value"] is None:
        return " / ".join(f"{v:g}" for v in published["values"])
    return f"{published['value']:g}" + (f" +- {published['ci95']:g}" if published["ci95"] else "")


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
    return f"{100 * fmean(r['mean'] for r in seeds):.1f} ({seeds[0]['published']['value']:g})"


EXPERIMENT: Column = ("experiment", lambda r: r["row"])
SEED: Column = ("seed", lambda r: str(r["seed"]))
PUBLISHED: Column = ("published", printed)
COST: Column = ("outer steps x tasks", lambda r: f"{r['steps_done']} x {r['tasks_seen'] // max(r['steps_done'], 1)}")
MINUTES: Column = ("minutes", lambda r: f"{r['seconds'] / 60:.1f}")
PRECISION: Column = ("precision", lambda r: r.get("precision", "float32"))


# ------------------------------------------------------------------------------------------------- tables


def of(data: str, *metrics: str) -> Callable[[Record], bool]:
    return lambda r: r["data"] == data and (not metrics or r["metric"] in metrics)


def beside_maml(r: Record) -> bool:
    return of("sinusoid")(r) and (r["metric"] == "log_likelihood" or r["algo"] == "maml")


OMNIGLOT = Table(
    "results.md",
    of("omniglot"),
    (
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
    ),
)
SINUSOIDS = Table(
    "results.md",
    of("sinusoid", "mse"),
    (EXPERIMENT, SEED, *((f"MSE after {k}", after(k)) for k in (0, 1, 5, 10)), PUBLISHED, COST, MINUTES),
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
TABLES: Mapping[str, Table | Overview] = {
    "Omniglot, in short": Overview("../README.md", of("omniglot"), learner, task, accuracy),
    "Omniglot": OMNIGLOT,
    "Sinusoids": SINUSOIDS,
    "Gaussian process": Table("generative.md", of("gp"), FUNCTIONS),
    "Sinusoids, distributions": Table("generative.md", beside_maml, FUNCTIONS),
    "Completion": Table("generative.md", of("completion"), FUNCTIONS),
    "Point robot": Table(
        "pearl.md",
        of("point_robot"),
        (
            EXPERIMENT,
            SEED,
            ("best possible", lambda r: f"{r['oracle']['return']['mean']:.2f}"),
            ("return, none explored", after(0, 2)),
            ("test return", lambda r: interval(r, 2)),
            ("zeros of actor and critics", zeros),
            ("environment steps", walked),
            COST,
            MINUTES,
        ),
    ),
}
