"""The tables of details.csv: the hardest classes, the pairs that are confused most, the hardest pictures."""

from __future__ import annotations

from collections.abc import Mapping

from metarun.report.read.runs import Run
from metarun.report.tables.table import Table
from metarun.storage.text import NOTHING

SHOWN = 20  # rows of each table


def class_table(run: Run) -> Table:
    """The classes of the test by their accuracy, the hardest first, and what each was most often taken for."""
    by_class: dict[str, dict[str, int]] = {}
    for (name, predicted), queries in run.details.confusion.items():
        by_class.setdefault(name, {})[predicted] = queries
    rows = []
    for name, found in by_class.items():
        total, right = sum(found.values()), found.get(name, 0)
        other, wrong = _most_frequent_error(found, name)
        share = _percent(wrong, total) if wrong else NOTHING
        rows.append((right / total, (name, _percent(right, total), str(total), other, share)))
    rows.sort()
    columns = ("class", "accuracy", "queries", "most often taken for", "of its queries")
    cells = tuple(cells for _, cells in rows[:SHOWN])
    return Table("Classes", columns, cells, _say_more("hardest", len(rows), "classes"), left=(0, 3))


def pair_table(run: Run) -> Table:
    """The pairs of a class and another that its queries were taken for, those with most such queries first."""
    wrong = {pair: queries for pair, queries in run.details.confusion.items() if pair[0] != pair[1]}
    order = sorted(wrong, key=lambda pair: (-wrong[pair], pair))
    rows = []
    for name, other in order[:SHOWN]:
        queries, together = wrong[name, other], run.details.count_together(name, other)
        rows.append((name, other, str(queries), str(together), _percent(queries, together)))
    more = _say_more("first", len(order), "pairs")
    note = f"The share is of the queries of a class in tasks that have the other class too. {more}"
    columns = ("class", "taken for", "queries", "of", "share")
    return Table("Classes that are confused most", columns, tuple(rows), note.strip(), left=(0, 1))


def picture_table(run: Run) -> Table:
    """The pictures (or rows) that were most often wrong, as queries of their class."""
    details = run.details
    rows = []
    for (name, label), found in details.rows.items():
        total, (other, wrong) = sum(found.values()), _most_frequent_error(found, label)
        errors = total - found.get(label, 0)
        if errors:
            rows.append((-errors, total, (name, label, str(total), str(errors), f"{other} ({wrong})")))
    rows.sort()
    columns = (details.row, "class", "queries", "wrong", "most often taken for")
    cells = tuple(cells for *_, cells in rows[:SHOWN])
    note = _say_more("most often wrong", len(rows), f"{details.row}s that were wrong once or more")
    return Table(f"Hardest {details.row}s", columns, cells, note, left=(0, 1, 4))


def _most_frequent_error(found: Mapping[str, int], name: str) -> tuple[str, int]:
    """What a class was most often taken for, and how often."""
    wrong = [(-queries, other) for other, queries in found.items() if other != name]
    return (min(wrong)[1], -min(wrong)[0]) if wrong else (NOTHING, 0)


def _percent(part: int, total: int) -> str:
    return f"{100 * part / total:.1f} %" if total else NOTHING


def _say_more(which: str, count: int, nouns: str) -> str:
    return f"The {SHOWN} {which} of {count} {nouns}." if count > SHOWN else ""
