"""The penalties of a run and the zeros of its tested weights, as tables and in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metarun.report.figures.panels import PENALTIES, families
from metarun.report.read.facts import keys, looked_up
from metarun.report.read.runs import Run
from metarun.report.tables.table import Table
from metarun.storage.text import NOTHING, count, is_number, number

TERMS = ("term", "class", "weight", "where", "schedule", "method", "value", "share of the gradient")
SPARSITY = ("layer", "weights", "zeros", "at most {}", "effective", "zero units")


def terms(run: Run) -> list[Mapping[str, Any]]:
    """What the summary says of each penalty; none for a run without."""
    listed = run.summary.get("regularization")
    return [t for t in listed if isinstance(t, Mapping)] if isinstance(listed, list) else []


def has_some(run: Run) -> bool:
    """Whether the summary lists penalties or numbers of theirs were logged."""
    return bool(terms(run)) or any(prefix in PENALTIES for prefix in families(keys(run.of("train"))))


def in_words(run: Run) -> str:
    """`l1: weight 0.01, outer, prox; prox_l2: ...`"""
    return "; ".join(f"{number(t.get('name'))}: {_settings(t)}" for t in terms(run))


def _settings(term: Mapping[str, Any]) -> str:
    parts = [f"weight {_weight(term)}", number(term.get("where")), str(term.get("method") or "")]
    return ", ".join(part for part in parts if part)


def zeros(run: Run) -> tuple[str, str]:
    """The share of zeros among the penalised weights, and how many there are; empty without a penalty for it."""
    seen = looked_up(run.summary, "sparsity.penalised")
    if not isinstance(seen, Mapping) or not is_number(seen.get("zeros_share")):
        return "", ""
    whole = f"; {_percent(looked_up(run.summary, 'sparsity.total.zeros_share'))} of all weights"
    return _percent(seen["zeros_share"]), f"of {count(seen.get('parameters'))} penalised weights{whole}"


def tables(run: Run) -> tuple[Table, ...]:
    """The terms, and zeros by layer; those that have rows."""
    return tuple(table for table in (_terms(run), _sparsity(run)) if table.rows)


def _terms(run: Run) -> Table:
    rows = tuple(_row(term) for term in terms(run))
    note = "Values and shares are of the last training record."
    return Table("Terms", TERMS, rows, note, left=(0, 1, 3, 4, 5))


def _row(term: Mapping[str, Any]) -> tuple[str, ...]:
    warmup = f", warm-up {count(term['warmup'])}" if term.get("warmup") else ""
    words = [number(term.get("name")), number(term.get("class")), _weight(term), number(term.get("where"))]
    words += [f"{number(term.get('schedule'))}{warmup}", number(term.get("method"))]
    return (*words, _by_place(term.get("value")), _by_place(term.get("share")))


def _weight(term: Mapping[str, Any]) -> str:
    """`0.01`, or `0.01 to 0` where it changes."""
    final = term.get("final_weight")
    return f"{number(term.get('weight'))}{f' to {number(final)}' if is_number(final) else ''}"


def _by_place(values: Any) -> str:
    """One number, or each with its place."""
    if not isinstance(values, Mapping):
        return NOTHING
    if len(values) == 1:
        return number(next(iter(values.values())))
    return ", ".join(f"{place} {number(value)}" for place, value in values.items())


def _sparsity(run: Run) -> Table:
    found, threshold = run.summary.get("sparsity"), number(looked_up(run.summary, "sparsity.threshold"))
    columns = tuple(column.format(threshold) for column in SPARSITY)
    if not isinstance(found, Mapping):
        return Table("", columns, ())
    layers = found.get("layers")
    parts = {**(layers if isinstance(layers, Mapping) else {}), "all": found.get("total")}
    rows = tuple(_counts(str(name), facts) for name, facts in parts.items() if isinstance(facts, Mapping))
    note = (
        f"Of the tested weights; at most {threshold} is meant of their size. Effective: participation ratio, how many "
        "weights of one size beside zeros would be as unequal."
    )
    return Table("Zeros by layer", columns, rows, note)


def _counts(name: str, facts: Mapping[str, Any]) -> tuple[str, ...]:
    units = f"{count(facts.get('zero_units'))} of {count(facts['units'])}" if facts.get("units") else NOTHING
    shares = [_percent(facts.get(key)) for key in ("zeros_share", "small_share")]
    return (name, count(facts.get("parameters")), *shares, number(facts.get("effective_parameters")), units)


def _percent(share: Any) -> str:
    return f"{100 * share:.2f} %" if is_number(share) else NOTHING
