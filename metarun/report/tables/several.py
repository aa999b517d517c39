"""Several runs together: their groups, what these reached, and the tables of it. Without figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from metarun.report.compare.groups import Group, by_benchmark, group_runs
from metarun.report.compare.results import Pair, Result, equal_compute, pairs, result
from metarun.report.read.runs import Run
from metarun.report.tables.beside import side_by_side
from metarun.report.tables.comparison import apart_table, budget_table, matrix_table, pair_table, result_table
from metarun.report.tables.table import Table


class MultiNetwork(NamedTuple):
    """The groups of all runs, and what each reached."""

    groups: list[Group]
    results: list[Result]

    @property
    def benchmarks(self) -> list[list[Result]]:
        names = by_benchmark(self.groups)
        return [[r for r in self.results if r.group.benchmark == name] for name in names]


def several(runs: Sequence[Run]) -> MultiNetwork:
    groups = group_runs(runs)
    return MultiNetwork(groups, [result(g) for g in groups])


def all_pairs(groups: Sequence[Group]) -> list[list[Pair]]:
    """Of each benchmark that has any; runs on different benchmarks are never paired."""
    return [found for members in by_benchmark(groups).values() if (found := pairs(members))]


def tables(shown: MultiNetwork) -> list[Table]:
    """All of them, in the order of reading."""
    return [*result_tables(shown), *pair_tables(all_pairs(shown.groups)), *budget_tables(shown.groups)]


def result_tables(shown: MultiNetwork) -> tuple[Table, ...]:
    matrix = matrix_table(shown.results)
    of_each = (result_table(rows) for rows in shown.benchmarks)
    return (*([matrix] if matrix else []), *of_each, *side_by_side(shown.groups))


def pair_tables(found: Sequence[Sequence[Pair]]) -> tuple[Table, ...]:
    """Of each benchmark the pairs that compare, then those that do not."""
    made = [make(members) for make in (pair_table, apart_table) for members in found]
    return tuple(table for table in made if table)


def budget_tables(groups: Sequence[Group]) -> tuple[Table, ...]:
    benchmarks = [members for members in by_benchmark(groups).values() if len(members) > 1]
    return tuple(budget_table(budgets, members) for members in benchmarks if (budgets := equal_compute(members)))
