"""A test's further figures as tables: likelihoods, errors, coverage, and those of the best possible predictor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from metarun.report.compare.groups import Group
from metarun.report.compare.results import interval_of
from metarun.report.read.facts import component, episode_size, metric_of
from metarun.report.read.runs import Run
from metarun.report.tables.table import Table
from metarun.storage.text import NOTHING, count, format_metric, is_number, metric_name

WORDS = {
    "pointwise_log_likelihood": "log-likelihood of single targets",
    "joint_log_likelihood": "log-likelihood of all targets together",
    "context_log_likelihood": "log-likelihood of the context",
    "elbo": "ELBO",
    "mse": "MSE of the mean",
}


def has_some(run: Run) -> bool:
    return bool(run.functions or run.summary.get("beside") or run.summary.get("oracle"))


def tables(run: Run) -> tuple[Table, ...]:
    """The test's further figures, and those of the best possible predictor."""
    own, best = _figures_of(run), _figures(run.summary.get("oracle"))
    names = [*own, *(name for name in best if name not in own)]
    rows = tuple((words(name), _cell(name, own.get(name)), _cell(name, best.get(name))) for name in names)
    note = f"± is half of a 95 % interval over {count(run.summary.get('n_tasks'))} tasks."
    if not best:
        return (Table("On the test tasks", ("figure", "this run"), tuple(row[:2] for row in rows), note),)
    note += " Best possible: the exact posterior, told what the tasks were drawn with."
    return (Table("On the test tasks", ("figure", "this run", "best possible"), rows, note),)


def _figures(found: Any) -> dict[str, Mapping[str, Any]]:
    return {str(k): v for k, v in found.items() if isinstance(v, Mapping)} if isinstance(found, Mapping) else {}


SHOWN = ("pointwise_log_likelihood", "joint_log_likelihood", "mse", "coverage_50", "coverage_90", "coverage_95")


def side_by_side(groups: Sequence[Group]) -> tuple[Table, ...]:
    """The figures of groups that were tested on the same episodes, whatever metric each of them reports: a table for
    each set of episodes that a learner of distributions was tested on."""
    alike: dict[str, list[Group]] = {}
    for group in groups:
        alike.setdefault(str(group.runs[0].summary.get("episodes_sha256")), []).append(group)
    return tuple(_compared(same) for same in alike.values() if any(g.runs[0].summary.get("beside") for g in same))


def _compared(groups: Sequence[Group]) -> Table:
    rows = [(g.label, [_figures_of(run) for run in g.runs]) for g in groups]
    best = _figures(groups[0].runs[0].summary.get("oracle"))
    rows += [("best possible", [best])] if best else []
    names = [n for n in SHOWN if any(n in figures for _, several in rows for figures in several)]
    cells = tuple((label, *(_over_seeds(name, several) for name in names)) for label, several in rows)
    run = groups[0].runs[0]
    title = f"All figures, on the same test tasks: {component(run, 'data')} {episode_size(run)}"
    return Table(title, ("algorithm", *map(words, names)), cells, "± as in the table of results.")


def _figures_of(run: Run) -> dict[str, Mapping[str, Any]]:
    return {metric_of(run): run.summary, **_figures(run.summary.get("beside"))}


def _over_seeds(name: str, several: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    found = [figures[name] for figures in several if is_number(figures.get(name, {}).get("mean"))]
    if not found:
        return NOTHING
    over = interval_of([f["mean"] for f in found], found[0].get("ci95", math.nan))
    return _cell(name, {"mean": over.mean, "ci95": over.half})


def words(name: str) -> str:
    if name.startswith("coverage_"):
        return f"targets inside the {name.removeprefix('coverage_')} % band"
    return WORDS.get(name, metric_name(name))


def _cell(name: str, found: Mapping[str, Any] | None) -> str:
    if not found:
        return NOTHING
    return format_metric("accuracy" if name.startswith("coverage_") else name, found.get("mean"), found.get("ci95"))
