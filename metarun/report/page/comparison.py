"""The sections of a page of several runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from metarun.report.compare.combinations import Swept, swept
from metarun.report.compare.results import device_of
from metarun.report.figures import comparison as versus
from metarun.report.figures import points
from metarun.report.figures.drawing import Drawing
from metarun.report.figures.sweep import drawings_of
from metarun.report.figures.zeros import sparsity_figure
from metarun.report.page.run import Section, titled
from metarun.report.read.jobs import Job, jobs_of
from metarun.report.read.runs import Run
from metarun.report.tables.several import MultiNetwork, all_pairs, budget_tables, pair_tables, result_tables, several
from metarun.report.tables.sweep import MOST_ROWS, bests, lost_table, swept_table

LEARNING = (
    "Left: the mean over seeds at the validations that all seeds reached, in a band from the lowest to the highest "
    "seed; a single seed has no band. Right: each seed by its own clock."
)
ADAPTATION = "Bands: lowest to highest seed, or for a single seed the 95 % interval over test tasks."
MEASURES = "Means over seeds, smoothed. Algorithms differ in what a meta-gradient is: norms compare within one only."
COST = "Inner gradients are those of the support loss that training took; a learner without an inner loop takes none."
ZEROS = "Each line is one algorithm and method, its points the weights of the penalty. Bars: 95 % intervals over tasks."
DIFFERENCES = "Dark: paired, task by task. Light: had the two been tested on different tasks."


BEST = "As that of the best of several, the validation figure flatters; the test figure played no part in the choice."
NO_BEST = "No run was validated, so that none is called the best."


def of_runs(runs: Sequence[Run], others: Sequence[Path] = ()) -> list[Section]:
    """What the runs show together; cards and warnings of each are on the page besides.

    `others` are the folders of jobs that left no run.
    """
    jobs = jobs_of(runs, others)
    return [*of_sweep(jobs), *compared(runs)]


def of_sweep(jobs: Sequence[Job]) -> list[Section]:
    """The settings that were swept and what came to nothing; no sections where there is neither."""
    found = swept(jobs)
    parts: dict[str, Callable[[], Section]] = {}
    if found:
        parts["Swept settings"] = functools.partial(settings, found)
        parts["Effect of the settings"] = functools.partial(effects, found)
    lost = lost_table(found, jobs)
    if lost:
        parts["Without a result"] = lambda: Section(tables=(lost,))
    return titled(parts)


def settings(found: Swept) -> Section:
    """The table of each benchmark, the best configurations and how to run them again."""
    chosen = bests(found)
    commands = tuple((best.what, best.command) for best in chosen if best.command)
    text = (*(best.sentence for best in chosen), BEST) if chosen else (NO_BEST,)
    return Section(
        text, tables=tuple(swept_table(found.axes, b, MOST_ROWS) for b in found.benchmarks), commands=commands
    )


def effects(found: Swept) -> Section:
    drawings, texts = drawings_of(found)
    return Section(texts, drawings) if drawings else Section(missing="No two combinations were validated.")


def compared(runs: Sequence[Run]) -> list[Section]:
    """The comparison of runs that differ in whatever they differ."""
    shown = several(runs)
    if not shown.groups:
        return [Section(missing="None of the runs trained or tested: nothing to compare.", title="Comparison")]
    parts: dict[str, Callable[[MultiNetwork], Section]] = {
        "Results": results,
        "Learning curves": learning,
        "Adaptation at test": adapting,
        "Paired comparison": paired,
        "Cost": cost,
        "Measures of training": measures,
    }
    drawing = sparsity_figure(runs)
    if drawing:
        parts["Zeros"] = lambda _: Section((ZEROS,), (drawing,))
    return titled({title: functools.partial(part, shown) for title, part in parts.items()})


def results(shown: MultiNetwork) -> Section:
    text = ["Runs that differ in nothing but their seed are one group."]
    repeated = sum(g.repeated for g in shown.groups)
    if repeated:
        text.append(f"{repeated} runs repeat a seed of their group and are left out here.")
    return Section(tuple(text), tables=result_tables(shown))


def learning(shown: MultiNetwork) -> Section:
    return _curves(
        versus.learning_curves(shown.groups, versus.looks_of(shown.groups)), LEARNING, "No run was validated."
    )


def adapting(shown: MultiNetwork) -> Section:
    return _curves(
        versus.adaptation_curves(shown.groups, versus.looks_of(shown.groups)), ADAPTATION, "No run was tested."
    )


def measures(shown: MultiNetwork) -> Section:
    return _curves(
        versus.measure_curves(shown.groups, versus.looks_of(shown.groups)), MEASURES, "No measures were logged."
    )


def _curves(drawing: Drawing | None, text: str, missing: str) -> Section:
    return Section((text,), (drawing,)) if drawing else Section(missing=missing)


def paired(shown: MultiNetwork) -> Section:
    found = all_pairs(shown.groups)
    if not found:
        return Section(missing="There is one group on each benchmark: a pair needs two on the same.")
    drawings = tuple(d for d in map(points.differences, found) if d)
    text = DIFFERENCES if drawings else "No two groups were tested on the same episodes."
    return Section((text,), drawings, pair_tables(found))


def cost(shown: MultiNetwork) -> Section:
    drawing, tables = points.cost_and_figure(shown.results, versus.looks_of(shown.groups)), budget_tables(shown.groups)
    if not drawing and not tables:
        return Section(missing="No run has both a figure and a cost.")
    devices = {d for g in shown.groups for d in device_of(g)}
    text = [COST]
    if len(devices) > 1:
        text.append(f"The runs were made on {', '.join(sorted(devices))}: their seconds do not compare.")
    return Section(tuple(text), (drawing,) if drawing else (), tables)
