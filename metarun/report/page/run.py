"""A section of a page, and the sections of one run's page. A section without data names what is missing."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from metarun.errors import one_line
from metarun.report.figures.confusion import draw_confusion
from metarun.report.figures.drawing import Drawing
from metarun.report.figures.functions import draw_predictions
from metarun.report.figures.panels import GRADIENTS, INNER, LEARNING, PENALTIES, PROBES, families, names_in, own_panels
from metarun.report.figures.run import draw_adaptation, draw_layers, draw_learning, draw_panels, draw_profiles
from metarun.report.figures.tasks import draw_embedding, draw_episode, draw_fits, draw_values
from metarun.report.read.facts import headline_scores, metric_names, metric_of, penalty_terms, test_curve
from metarun.report.read.files import Analysis, as_mappings
from metarun.report.read.runs import Run
from metarun.report.tables.classes import class_table, pair_table, picture_table
from metarun.report.tables.penalties import penalty_tables
from metarun.report.tables.run import (
    adaptation_table,
    alarm_table,
    analysis_tables,
    calibration_table,
    convergence_tables,
    further_metrics_table,
    set_table,
    task_table,
)
from metarun.report.tables.table import Table
from metarun.storage.text import count

CURVES = (
    "Thin lines are single records, thick ones are smoothed. Validation is on fixed tasks, training loss and metric on "
    "the tasks of each step, before the update."
)
MATRIX = (
    "A row is a class, a column what its queries were taken for, in per cent of those in tasks that have both classes; "
    "the diagonal is the accuracy. Grey: no task has both."
)
FITS = (
    "What the learner predicts along x before adaptation, after one step, and after the reported number of steps, on "
    "test tasks from the easiest to the hardest. It adapts to the support points; the grey points are the true values."
)
VALUES = (
    "Queries of test tasks from the easiest to the hardest: predicted against true values, in the units that the "
    "learner gets. On the dashed line a prediction is exact."
)
EPISODES = (
    "Test tasks from the easiest to the hardest. Below each query is the probability of the class it was taken for; of "
    "a wrong one, in a dashed frame, also the number of that class. Wrong ones come first in their row."
)
FEATURES = (
    "Features of a task in two dimensions (its first two principal components). Large: support, small: queries, a "
    "cross: the mean of a class's support. Distances in the plane leave out what the other components hold."
)
COUNTED = "Counted over the first {} test tasks; test.details=true counts them all."
SHARES = "Shares are of the gradient's parts by length, separately for outer and inner terms."
MOST_EPISODES = 3
OF_TRAINING = ("Learning curve", "Meta-gradient", "Inner loop", "Probes", "Layers", "Convergence", "Alarms")
MAX_EMBEDDED, MAX_PICTURES = 300_000, 4  # bytes of an analysis's figure; figures of one analysis


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading."""

    text: Sequence[str] = ()
    drawings: Sequence[Drawing] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[tuple[str, bytes]] = ()  # alt text, PNG
    details: Sequence[tuple[str, str]] = ()  # a line, and preformatted text below it
    commands: Sequence[tuple[str, str]] = ()  # purpose, and the command to type
    missing: str = ""
    title: str = ""


def build_sections(parts: Mapping[str, Callable[[], Section]]) -> list[Section]:
    """Build the sections under their headings. Files of another program may break one, but not the others."""
    sections = []
    for title, part in parts.items():
        try:
            section = part()
        except Exception as error:
            section = failed_section(error)
        sections.append(dataclasses.replace(section, title=title))
    return sections


def failed_section(error: Exception) -> Section:
    return Section(missing=f"This part could not be made from what the folder holds ({one_line(error)}).")


def show(drawing: Drawing | None, text: str, missing: str, tables: Sequence[Table] = ()) -> Section:
    """A figure with its text, or what is missing."""
    return Section([text], [drawing], tables) if drawing else Section(tables=tables, missing=missing)


def _panel_section(drawings: Sequence[Drawing | None], missing: str, *texts: str) -> Section:
    """Figures of panels, and texts that stand without figures too, else what is missing."""
    shown, text = [d for d in drawings if d], [t for t in texts if t]
    return Section(text, shown, missing="" if shown or text else missing)


def run_sections(run: Run) -> list[Section]:
    """Return all sections of one run, in the order of reading."""
    parts: dict[str, Callable[[Run], Section]] = {"Learning curve": learning_section, "Adaptation at test": _adaptation}
    if run.summary.get("by_set"):
        parts["Data sets"] = lambda run: Section(tables=[set_table(run)])
    if run.functions or run.summary.get("beside") or run.summary.get("oracle"):
        parts["Predicted distributions"] = _predictions
    if run.tasks.get("tasks"):
        parts["Test tasks"] = _tasks
    if run.details.confusion:
        parts["Classes"] = _classes
    parts |= {"Meta-gradient": _gradients, "Inner loop": _inner_loop}
    if penalty_terms(run) or families(metric_names(run.of("train"))).keys() & PENALTIES.keys():
        parts["Penalties"] = _penalties
    parts |= {"Probes": _probes, "Layers": _layers, "Convergence": _convergence, "Alarms": _alarms}
    if run.config.get("job") == "evaluate":  # it trained nothing
        parts = {title: part for title, part in parts.items() if title not in OF_TRAINING}
    found: dict[str, Callable[[], Section]] = {title: functools.partial(part, run) for title, part in parts.items()}
    found |= {f"Analysis: {a.name}": functools.partial(_analysis, a) for a in run.analyses}
    if not run.analyses:
        command = f"metarun job=analyze run={run.path} analysis=NAME"
        found["Analyses"] = lambda: Section(missing=f"This run has no analyses yet. To make one: {command}")
    return build_sections(found | {"Everything else": functools.partial(_everything_else, run)})


def learning_section(run: Run) -> Section:
    return show(draw_learning(run), CURVES, "The run logged neither training nor validation.")


def _adaptation(run: Run) -> Section:
    if not test_curve(run):
        return Section(missing="The summary holds no test.")
    drawing, tables = draw_adaptation(run), [table for table in (calibration_table(run),) if table.rows]
    if drawing is None:
        return Section(["The learner adapts in a single step or in none: there is no curve."], tables=tables)
    return Section(drawings=[drawing], tables=[adaptation_table(run), *tables])


def _predictions(run: Run) -> Section:
    return show(*draw_predictions(run), "", [further_metrics_table(run)])


def _tasks(run: Run) -> Section:
    """A few test tasks as the learner saw them, and the hardest and easiest of all."""
    found, scores, metric = run.tasks, headline_scores(run), metric_of(run)
    tables = [table for table in (task_table(run),) if table.rows]
    if found.get("kind") == "functions":
        return Section([FITS], [draw_fits(found, scores, metric)], tables)
    if found.get("kind") == "values":
        return Section([VALUES], [draw_values(found, scores, metric)], tables)
    tasks = as_mappings(found.get("tasks"))[:MOST_EPISODES]
    episodes = [drawing for task in tasks if (drawing := draw_episode(task))]
    features = draw_embedding(tasks)
    text = [EPISODES] if episodes else []
    further = ([FEATURES], [features]) if features else ([], [])
    return Section([*text, *further[0]], [*episodes, *further[1]], tables)


def _classes(run: Run) -> Section:
    """The confusion matrix, or without room for one the pairs; the hardest classes and pictures."""
    counted = run.details.counted
    few = [COUNTED.format(count(counted))] if counted else []
    drawing = draw_confusion(run.details)
    tables = [class_table(run), None if drawing else pair_table(run), picture_table(run) if run.details.row else None]
    shown = [table for table in tables if table and table.rows]
    return Section([MATRIX, *few], [drawing], shown) if drawing else Section(few, tables=shown)


def _gradients(run: Run) -> Section:
    drawing, text = draw_panels("gradients", run.of("train"), GRADIENTS)
    missing = "No metrics of the meta-gradient were logged (diagnostics=off, or no training)."
    return _panel_section([drawing], missing, text)


def _inner_loop(run: Run) -> Section:
    train = run.of("train")
    if not (names_in(INNER) - {"loss"}).intersection(metric_names(train)):
        reasons = "the learner has none, diagnostics=off, or no training"
        return Section(missing=f"No metrics of an inner loop were logged ({reasons}).")
    drawing, text = draw_panels("inner_loop", train, INNER)
    return _panel_section([drawing, draw_profiles("along_inner_loop", train)], "", text)


def _probes(run: Run) -> Section:
    records = run.of("probe")
    own = own_panels([name for name in metric_names(records) if name not in names_in(PROBES)])
    drawing, text = draw_panels("probes", records, [*PROBES, *own])
    drawings = [drawing, draw_profiles("probe_profiles", records), draw_layers("probe_layers", records)]
    texts = ("Measured on the same fixed tasks each time.", text) if records else ()
    return _panel_section(drawings, "No probes on fixed tasks were logged; diagnostics=full logs them.", *texts)


def _penalties(run: Run) -> Section:
    drawing = draw_layers("penalties", run.of("train"), penalties=True)
    missing = "No metrics of penalties were logged (diagnostics=off, or no training)."
    return show(drawing, SHARES, missing, penalty_tables(run))


def _layers(run: Run) -> Section:
    return _panel_section([draw_layers("layers", run.of("train"))], "No metrics of single layers were logged.")


def _convergence(run: Run) -> Section:
    tables = convergence_tables(run)
    missing = "The summary holds no convergence metrics; they are added when a run ends."
    return Section(tables=tables) if tables else Section(missing=missing)


def _alarms(run: Run) -> Section:
    raised = run.summary.get("alarms")
    if not isinstance(raised, Mapping):
        return Section(missing="This run did not record alarms.")
    return Section(tables=[alarm_table(raised)]) if raised else Section(["No alarm was raised."])


def _analysis(analysis: Analysis) -> Section:
    """Message, figures and tables that `job=analyze` left."""
    small = [(name, data) for name, data in analysis.figures if len(data) <= MAX_EMBEDDED][:MAX_PICTURES]
    left_out = [str(analysis.path / name) for name, data in analysis.figures if (name, data) not in small]
    # Of one with tables of its own, the message has these again, for a terminal.
    message = "" if analysis.summary.get("tables") else analysis.summary.get("message")
    texts = str(message or "").splitlines()
    texts += [f"More figures are in {', '.join(left_out)}."] if left_out else []
    tables = analysis_tables(analysis)
    pictures = [(f"Figure of the analysis {analysis.name}: {name}", data) for name, data in small]
    missing = "" if tables or pictures else "This analysis has no results yet."
    return Section(texts, tables=tables, pictures=pictures, missing=missing)


def _everything_else(run: Run) -> Section:
    """Metrics of training that no panel above shows, all settings and the whole summary."""
    covered = names_in(GRADIENTS, INNER) | {*LEARNING, metric_of(run)}
    own = own_panels([name for name in metric_names(run.of("train")) if name not in covered])
    drawing, text = draw_panels("others", run.of("train"), own)
    summary = json.dumps(run.summary, indent=2, ensure_ascii=False) if run.summary else ""
    details = {"All settings (config.yaml)": run.config_text, "The whole summary (summary.json)": summary}
    missing = "" if run.config_text else "config.yaml is not there: the settings are unknown."
    shown = [(line, content) for line, content in details.items() if content]
    return dataclasses.replace(_panel_section([drawing], "", text), details=shown, missing=missing)
