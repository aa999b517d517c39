"""The sections of a page of several runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from metarun.report.compare.groups import Group, group_runs
from metarun.report.compare.results import Result, pair_benchmarks, summarize
from metarun.report.compare.sweep import Sweep, collect_sweep
from metarun.report.figures.comparison import (
    Looks,
    draw_adaptation_curves,
    draw_costs,
    draw_differences,
    draw_learning_curves,
    draw_sparsity,
    draw_training_metrics,
    looks_of,
)
from metarun.report.figures.sweep import draw_sweep
from metarun.report.page.run import Section, build_sections, show
from metarun.report.read.facts import setting
from metarun.report.read.jobs import list_jobs
from metarun.report.read.runs import Run
from metarun.report.tables.comparison import apart_tables, budget_tables, pair_tables, result_tables
from metarun.report.tables.sweep import best_configurations, lost_table, settings_table

GROUPS = "Runs that differ in nothing but their seed are one group."
LEARNING = (
    "Left: the mean over seeds at the validations that all seeds reached, in a band from the lowest to the highest "
    "seed; a single seed has no band. Right: each seed by its own training time."
)
ADAPTATION = "Bands: lowest to highest seed, or for a single seed the 95 % interval over test tasks."
METRICS = "Means over seeds, smoothed. Compare norms within one algorithm only: meta-gradients are defined differently."
COST = "Inner gradients are those of the support loss in training; a learner without an inner loop has none."
ZEROS = "Each line is one algorithm and method, its points the weights of the penalty. Bars: 95 % intervals over tasks."
DIFFERENCES = "Dark: paired, task by task. Light: the interval if the two had been tested on different tasks."
BEST = "The validation metric of the best combination is optimistic; the test metric played no part in the choice."
NO_BEST = "No run was validated, so no configuration is called the best."
MAX_ROWS = 60  # of a table of swept settings


def comparison_sections(runs: Sequence[Run], others: Sequence[Path] = ()) -> list[Section]:
    """Return what the runs show together; `others` are the folders of jobs that left no run."""
    jobs = list_jobs(runs, others)
    sweep = collect_sweep(jobs)
    parts: dict[str, Callable[[], Section]] = {}
    if sweep:
        parts["Swept settings"] = lambda: _settings(sweep)
        parts["Effect of the settings"] = lambda: _effects(sweep)
    lost = lost_table(sweep, jobs)
    if lost:
        parts["Without a result"] = lambda: Section(tables=[lost])
    groups = group_runs(runs)
    if not groups:
        parts["Comparison"] = lambda: Section(missing="No run trained or tested: there is nothing to compare.")
        return build_sections(parts)
    results, looks = [summarize(group) for group in groups], looks_of([group.label for group in groups])
    parts |= {
        "Results": lambda: Section([GROUPS], tables=result_tables(results)),
        "Learning curves": lambda: show(draw_learning_curves(groups, looks), LEARNING, "No run was validated."),
        "Adaptation at test": lambda: show(draw_adaptation_curves(groups, looks), ADAPTATION, "No run was tested."),
        "Paired comparison": lambda: _pairs(groups),
        "Cost": lambda: _costs(results, looks),
        "Training metrics": lambda: show(draw_training_metrics(groups, looks), METRICS, "No metrics were logged."),
    }
    sparsity = draw_sparsity(runs)
    if sparsity:
        parts["Zeros"] = lambda: show(sparsity, ZEROS, "")
    return build_sections(parts)


def _settings(sweep: Sweep) -> Section:
    """The table of each benchmark, the best configurations and the commands to run them again."""
    found = best_configurations(sweep)
    commands = [(best.purpose, best.command) for best in found if best.command]
    text = [*(best.sentence for best in found), BEST] if found else [NO_BEST]
    tables = [settings_table(sweep.axes, b, MAX_ROWS) for b in sweep.benchmarks]
    return Section(text, tables=tables, commands=commands)


def _effects(sweep: Sweep) -> Section:
    drawings, texts = draw_sweep(sweep)
    return Section(texts, drawings) if drawings else Section(missing="Fewer than two combinations were validated.")


def _pairs(groups: Sequence[Group]) -> Section:
    found, apart = pair_benchmarks(groups), apart_tables(groups)
    if not found:
        return Section(tables=apart, missing="No benchmark has two groups that were tested on the same episodes.")
    drawings = [drawing for drawing in map(draw_differences, found) if drawing]
    text = DIFFERENCES if drawings else "No two groups were tested on the same episodes."
    return Section([text], drawings, [*pair_tables(found), *apart])


def _costs(results: Sequence[Result], looks: Looks) -> Section:
    groups = [r.group for r in results]
    drawing, tables = draw_costs(results, looks), budget_tables(groups)
    if not drawing and not tables:
        return Section(missing="No run has both a test metric and a cost.")
    runs = [run for group in groups for run in group.runs]
    devices = {str(run.summary.get("device") or setting(run, "device.name")) for run in runs}
    text = [COST]
    if len(devices) > 1:
        text.append(f"The runs were made on {', '.join(sorted(devices))}: their seconds do not compare.")
    return Section(text, [drawing] if drawing else [], tables)
