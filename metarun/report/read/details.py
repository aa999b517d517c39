"""What each class and picture was taken for, read without trust.

From details.csv of a test with `test.details=true`, or from the counts of some test tasks in tasks.json.
"""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metarun.report.read.files import MAX_BYTES, read
from metarun.storage import untrusted
from metarun.storage.text import unescape_formula

ROWS = ("picture", "row", "window")  # what a data set may call its rows


class Details(NamedTuple):
    """Counts of queries of a classification."""

    confusion: Mapping[tuple[str, str], int]  # (class, predicted)
    tasks: Mapping[str, Mapping[str, int]]  # class -> the tasks that have it -> its queries there
    row: str  # picture, row, window; empty where queries have no names
    rows: Mapping[tuple[str, str], Mapping[str, int]]  # (name of the picture or row, class) -> predicted -> queries
    counted: int = 0  # the first so many test tasks; 0: all of them

    def count_together(self, name: str, other: str) -> int:
        """The queries of a class in the tasks that have the other class too."""
        others = self.tasks.get(other, {})
        return sum(queries for task, queries in self.tasks.get(name, {}).items() if task in others)


NO_DETAILS = Details({}, {}, "", {})


def read_details(path: Path) -> Details:
    """`NO_DETAILS` without that file, for a regression, and for a file that is damaged."""
    text, problem = read(path, lambda: untrusted.read_text(path, MAX_BYTES, errors="replace"), "is damaged")
    reader = csv.DictReader(io.StringIO(text or ""))
    try:
        if problem or not {"class", "predicted"} <= {*(reader.fieldnames or ())}:
            return NO_DETAILS
        return count_queries(reader, next((row for row in ROWS if row in (reader.fieldnames or ())), ""))
    except csv.Error:
        return NO_DETAILS


def count_queries(queries: Iterable[Mapping[str, str]], row: str) -> Details:
    """The counts of the lines of details.csv; `row` is the column of the names, if there is one."""
    confusion: Counter[tuple[str, str]] = Counter()
    tasks: dict[str, Counter[str]] = defaultdict(Counter)
    rows: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for query in queries:
        name, predicted = (unescape_formula(str(query[key])) for key in ("class", "predicted"))
        confusion[name, predicted] += 1
        tasks[name][str(query.get("task"))] += 1
        if row:
            rows[unescape_formula(str(query[row])), name][predicted] += 1
    return Details(confusion, tasks, row, rows)


def count_listed(found: Any) -> Details:
    """The counts of rows of task, class, predicted class, number of queries; `NO_DETAILS` for anything else."""
    rows = found.get("rows") if isinstance(found, Mapping) else None
    confusion: Counter[tuple[str, str]] = Counter()
    tasks: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows if isinstance(rows, list) else ():
        if not (isinstance(row, list) and len(row) == 4 and isinstance(row[3], int) and row[3] > 0):
            return NO_DETAILS
        task, name, predicted = map(str, row[:3])
        confusion[name, predicted] += row[3]
        tasks[name][task] += row[3]
    counted = found.get("tasks") if confusion else 0
    return Details(confusion, tasks, "", {}, counted if isinstance(counted, int) else 0)
