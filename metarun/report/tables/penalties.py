"""The penalties of a run and the zeros of its tested weights, as tables and in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metarun.report.read.facts import penalty_terms
from metarun.report.read.files import as_mapping, look_up
from metarun.report.read.runs import Run
from metarun.report.tables.table import Table
from metarun.storage.text import NOTHING, count, is_number, number

TERMS = ("term", "class", "weight", "where", "schedule", "method", "value", "share of the gradient")


def format_penalties(run: Run) -> str:
    """`l1: weight 0.01, outer, prox; prox_l2: ...`"""
    terms = []
    for term in penalty_terms(run):
        settings = (f"weight {_format_weight(term)}", number(term.get("where")), str(term.get("method") or ""))
        terms.append(f"{number(term.get('name'))}: {', '.join(filter(None, settings))}")
    return "; ".join(terms)


def format_zeros(run: Run) -> tuple[str, str]:
    """The share of zeros among the penalised weights, and the number of these; empty without such a penalty."""
    penalised = as_mapping(look_up(run.summary, "sparsity.penalised"))
    if not is_number(penalised.get("zeros_share")):
        return "", ""
    total = _percent(look_up(run.summary, "sparsity.total.zeros_share"))
    note = f"of {count(penalised.get('parameters'))} penalised weights; {total} of all weights"
    return _percent(penalised["zeros_share"]), note


def penalty_tables(run: Run) -> tuple[Table, ...]:
    """The terms, and the zeros by layer; those that have rows."""
    return tuple(table for table in (_term_table(run), _sparsity_table(run)) if table.rows)


def _term_table(run: Run) -> Table:
    rows = []
    for term in penalty_terms(run):
        warmup = f", warm-up {count(term['warmup'])}" if term.get("warmup") else ""
        name, kind, where, schedule, method = (
            number(term.get(key)) for key in ("name", "class", "where", "schedule", "method")
        )
        value, share = (_format_locations(term.get(key)) for key in ("value", "share"))
        rows.append((name, kind, _format_weight(term), where, schedule + warmup, method, value, share))
    return Table("Terms", TERMS, tuple(rows), "Values and shares are of the last training record.", (0, 1, 3, 4, 5))


def _format_weight(term: Mapping[str, Any]) -> str:
    """`0.01`, or `0.01 to 0` if it changes."""
    final = term.get("final_weight")
    return f"{number(term.get('weight'))}{f' to {number(final)}' if is_number(final) else ''}"


def _format_locations(values: Any) -> str:
    """One number, or the number of each location: inner, outer."""
    if not isinstance(values, Mapping):
        return NOTHING
    if len(values) == 1:
        return number(next(iter(values.values())))
    return ", ".join(f"{location} {number(value)}" for location, value in values.items())


def _sparsity_table(run: Run) -> Table:
    found = as_mapping(run.summary.get("sparsity"))
    threshold, rows = number(found.get("threshold")), []
    for name, facts in {**as_mapping(found.get("layers")), "all": found.get("total")}.items():
        if isinstance(facts, Mapping):
            units = f"{count(facts.get('zero_units'))} of {count(facts['units'])}" if facts.get("units") else NOTHING
            shares = (_percent(facts.get("zeros_share")), _percent(facts.get("small_share")))
            effective = number(facts.get("effective_parameters"))
            rows.append((str(name), count(facts.get("parameters")), *shares, effective, units))
    note = (
        f"Of the tested weights; “at most {threshold}” refers to their absolute value. Effective: participation ratio, "
        "the number of weights of equal size, all others zero, that would be as unequal."
    )
    columns = ("layer", "weights", "zeros", f"at most {threshold}", "effective", "zero units")
    return Table("Zeros by layer", columns, tuple(rows), note)


def _percent(share: Any) -> str:
    return f"{100 * share:.2f} %" if is_number(share) else NOTHING
