"""The sections of a page of several runs."""

from __future__ import annotations

from collections.abc import Sequence

from metarun.report import points, versus
from metarun.report.groups import Group, by_benchmark, group_runs
from metarun.report.read import Run
from metarun.report.results import Pair, Result, device_of, equal_compute, pairs, result
from metarun.report.sections import Section
from metarun.report.tables import budget_table, matrix_table, pair_table, result_table


def all_pairs(groups: Sequence[Group]) -> list[Pair]:
    """Of each benchmark; runs on different benchmarks are never paired."""
    return [pair for members in by_benchmark(groups).values() for pair in pairs(members)]


def of_runs(runs: Sequence[Run]) -> list[Section]:
    """What the runs show together; cards and warnings of each are on the page besides."""
    groups = group_runs(runs)
    if not groups:
        return [Section("Comparison", missing="None of the runs trained or tested: there is nothing to compare.")]
    results, looks = [result(g) for g in groups], versus.looks_of(groups)
    return [
        _results(results, groups),
        _curves("Learning curves", versus.learning_curves(groups, looks), LEARNING, "No run was validated."),
        _curves("Adaptation at test", versus.adaptation_curves(groups, looks), ADAPTATION, "No run was tested."),
        _paired(groups),
        _compute(results, groups, looks),
        _curves("Measures of training", versus.measure_curves(groups, looks), MEASURES, "No measures were logged."),
    ]


LEARNING = (
    "Left: the mean over seeds at the validations that all seeds reached, in a band from the lowest to the highest "
    "seed; a single seed has no band. Right: each seed by its own clock."
)
ADAPTATION = "Bands: lowest to highest seed, or for a single seed the 95 % interval over test tasks."
MEASURES = "Means over seeds, smoothed. Algorithms differ in what a meta-gradient is: norms compare within one only."
COST = "Inner gradients are those of the support loss that training took; a learner without an inner loop takes none."


def _curves(title: str, drawing: versus.Drawing | None, text: str, missing: str) -> Section:
    return Section(title, (text,), (drawing,)) if drawing else Section(title, missing=missing)


def _results(results: Sequence[Result], groups: Sequence[Group]) -> Section:
    text = ["Runs that differ in nothing but their seed are one group."]
    repeated = sum(g.repeated for g in groups)
    if repeated:
        text.append(f"{repeated} runs repeat a seed of their group and are left out here.")
    matrix = matrix_table(results)
    return Section("Results", tuple(text), tables=(*([matrix] if matrix else []), result_table(results)))


def _paired(groups: Sequence[Group]) -> Section:
    found = all_pairs(groups)
    if not found:
        missing = "There is one group on each benchmark: a pair needs two on the same."
        return Section("Paired comparison", missing=missing)
    drawing = points.differences(found)
    text = () if drawing else ("No two groups were tested on the same episodes.",)
    return Section("Paired comparison", text, (drawing,) if drawing else (), (pair_table(found),))


def _compute(results: Sequence[Result], groups: Sequence[Group], looks: versus.Looks) -> Section:
    drawing = points.cost_and_figure(results, looks)
    tables = [
        budget_table(budgets, members)
        for members in by_benchmark(groups).values()
        if len(members) > 1 and (budgets := equal_compute(members))
    ]
    if not drawing and not tables:
        return Section("Cost", missing="No run has both a figure and a cost.")
    devices = {d for g in groups for d in device_of(g)}
    text = [COST]
    if len(devices) > 1:
        text.append(f"The runs were made on {', '.join(sorted(devices))}: their seconds do not compare.")
    return Section("Cost", tuple(text), (drawing,) if drawing else (), tuple(tables))
