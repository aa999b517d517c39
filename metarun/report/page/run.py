"""What a page is made of, and the sections of one run's page. A section that lacks its numbers says which."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metarun.errors import one_line
from metarun.report.figures import distributions, pictures
from metarun.report.figures import metrics as measures
from metarun.report.figures import panels as names
from metarun.report.figures import run as charts
from metarun.report.figures.drawing import Drawing
from metarun.report.read.facts import adaptation, keys, metric_of
from metarun.report.read.files import Analysis
from metarun.report.read.runs import Run
from metarun.report.tables import beside, convergence, penalties
from metarun.report.tables.table import Table
from metarun.storage.text import adaptation_unit, axis_label, count, format_metric, is_number, number

MOST_EMBEDDED, MOST_PICTURES = 300_000, 4  # bytes of an analysis's figure; figures of one
FOLDED_ROWS, MOST_ROWS = 8, 40  # of an analysis's table, and adaptation steps


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading."""

    text: tuple[str, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[tuple[str, bytes], ...] = ()  # what it shows, and a PNG
    details: tuple[tuple[str, str], ...] = ()  # a line, and preformatted text below it
    commands: tuple[tuple[str, str], ...] = ()  # what it does, and the command to type
    missing: str = ""
    title: str = ""


def titled(parts: Mapping[str, Callable[[], Section]]) -> list[Section]:
    """The sections under their headings. What another program left in a folder may break one, but not the others."""
    made = []
    for title, part in parts.items():
        try:
            section = part()
        except Exception as error:
            section = failed(error)
        made.append(dataclasses.replace(section, title=title))
    return made


def failed(error: Exception) -> Section:
    return Section(missing=f"This part could not be made from what the folder holds ({one_line(error)}).")


def of_run(run: Run) -> list[Section]:
    """All sections of one run, in the order of reading."""
    parts: dict[str, Callable[[Run], Section]] = {
        "Learning curve": learning,
        "Adaptation at test": adapting,
        **({"Predicted distributions": predicted} if beside.has_some(run) else {}),
        "Meta-gradient": gradients,
        "Inner loop": inner_loop,
        **({"Penalties": penalised} if penalties.has_some(run) else {}),
        "Probes": probes,
        "Layers": layers,
        "Convergence": converging,
        "Alarms": alarms,
    }
    found: dict[str, Callable[[], Section]] = {title: functools.partial(part, run) for title, part in parts.items()}
    found |= {f"Analysis: {a.name}": functools.partial(analysed, a) for a in run.analyses}
    if not run.analyses:
        found["Analyses"] = functools.partial(no_analyses, run)
    return titled(found | {"Everything else": functools.partial(others, run)})


def learning(run: Run) -> Section:
    drawing = charts.learning(run)
    text = (
        "Thin lines are single records, thick ones a smoothed running median. Validation is on fixed tasks, training "
        "loss and figure on the tasks of each step, before the update."
    )
    return _drawn([drawing], "The run logged neither training nor validation.", text if drawing else "")


def adapting(run: Run) -> Section:
    if not adaptation(run):
        return Section(missing="The summary holds no test.")
    drawing = charts.adapting(run)
    if drawing is None:
        return Section(("The learner adapts in a single step or in none: there is no curve.",))
    return Section(drawings=(drawing,), tables=(adaptation_table(run),))


def adaptation_table(run: Run) -> Table:
    """The test after each adaptation step."""
    metric = metric_of(run)
    rows = tuple(
        (number(r.get("step")), format_metric(metric, r.get("mean"), r.get("ci95"), unit=False), number(r.get("loss")))
        for r in run.summary["curve"]
        if isinstance(r, Mapping)
    )
    note = f"± is half of a 95 % interval over {count(run.summary.get('n_tasks'))} tasks."
    columns = (adaptation_unit(run.summary.get("kind")), axis_label(metric), "query loss")
    return Table(f"By {adaptation_unit(run.summary.get('kind'))}", columns, rows[:MOST_ROWS], note)


def predicted(run: Run) -> Section:
    kind = pictures if pictures.has_some(run) else distributions
    drawing = kind.draw(run)
    section = _drawn([drawing], "", kind.TEXT if drawing else "")
    return dataclasses.replace(section, tables=beside.tables(run), missing="")


def gradients(run: Run) -> Section:
    found = measures.draw_panels("gradients", run.of("train"), names.GRADIENTS)
    missing = "No measures of the meta-gradient were logged (diagnostics=off, or no training)."
    return _drawn([found.drawing], missing, found.text)


def inner_loop(run: Run) -> Section:
    train = run.of("train")
    if not [k for k in keys(train) if k in names.known(names.INNER) and k != "loss"]:
        missing = (
            "Nothing was logged of an inner loop: the learner has none, diagnostics=off, or there was no training."
        )
        return Section(missing=missing)
    found = measures.draw_panels("inner_loop", train, names.INNER)
    return _drawn([found.drawing, measures.draw_profiles("along_inner_loop", train)], "", found.text)


def probes(run: Run) -> Section:
    records, listed = run.of("probe"), names.known(names.PROBES)
    own = names.own_panels([key for key in keys(records) if key not in listed])
    found = measures.draw_panels("probes", records, [*names.PROBES, *own])
    drawings = [
        found.drawing,
        measures.draw_profiles("probe_profiles", records),
        measures.draw_layers("probe_layers", records),
    ]
    text = ("Measured on the same fixed tasks each time.", found.text) if records else ()
    return _drawn(drawings, "No probes on fixed tasks were logged; diagnostics=full takes them.", *text)


def penalised(run: Run) -> Section:
    drawing = measures.draw_layers("penalties", run.of("train"), penalties=True)
    text = "Shares are of the gradient's parts by length, of outer terms and of inner ones apart." if drawing else ""
    missing = "" if drawing else "No measures of penalties were logged (diagnostics=off, or no training)."
    section = _drawn([drawing], missing, text)
    return dataclasses.replace(section, tables=penalties.tables(run))


def layers(run: Run) -> Section:
    return _drawn([measures.draw_layers("layers", run.of("train"))], "No numbers of single layers were logged.")


def converging(run: Run) -> Section:
    tables = convergence.tables(run)
    missing = "The summary holds no convergence figures; they are added when a run ends."
    return Section(tables=tables) if tables else Section(missing=missing)


def alarms(run: Run) -> Section:
    raised = run.summary.get("alarms")
    if not isinstance(raised, Mapping):
        return Section(missing="This run did not record alarms.")
    if not raised:
        return Section(("None was raised.",))
    rows = tuple((str(name), *_alarm(alarm)) for name, alarm in raised.items())
    columns = ("alarm", "times", "first step", "last step", "says")
    return Section(tables=(Table("Alarms raised", columns, rows, left=(0, 4)),))


def _alarm(alarm: Any) -> tuple[str, ...]:
    if not isinstance(alarm, Mapping):
        return number(alarm), "", "", ""
    return tuple(number(alarm.get(key)) for key in ("count", "first", "last", "message"))


def no_analyses(run: Run) -> Section:
    return Section(missing=f"There are none yet: metarun job=analyze run={run.path} analysis=NAME makes them.")


def analysed(analysis: Analysis) -> Section:
    """Message, pictures, figures and rows that `job=analyze` left."""
    said = analysis.results.get("summary")
    said = said if isinstance(said, Mapping) else analysis.results
    small = [(name, data) for name, data in analysis.figures if len(data) <= MOST_EMBEDDED][:MOST_PICTURES]
    left_out = [str(analysis.path / name) for name, data in analysis.figures if (name, data) not in small]
    texts = str(said.get("message") or "").splitlines()
    texts += [f"More figures are in {', '.join(left_out)}."] if left_out else []
    facts = tuple((str(k).replace("_", " "), number(v)) for k, v in said.items() if k != "message" and _is_plain(v))
    tables = [Table("What it adds up to", ("", "value"), facts, left=(0, 1))] if facts else []
    tables += [_rows(analysis)] if analysis.rows else []
    pictures = tuple((f"Figure of the analysis {analysis.name}: {name}", data) for name, data in small)
    missing = "" if tables or pictures else "It has no results yet."
    return Section(tuple(texts), tables=tuple(tables), pictures=pictures, missing=missing)


def _is_plain(value: Any) -> bool:
    return is_number(value) or (isinstance(value, str) and len(value) < 200)


def _rows(analysis: Analysis) -> Table:
    left = tuple(k for k in range(len(analysis.columns)) if not all(_numeric(row[k]) for row in analysis.rows))
    more = analysis.more + max(0, len(analysis.rows) - MOST_ROWS)
    note = f"{more} more rows are in {analysis.path / 'results.csv'}." if more else ""
    rows = tuple(tuple(_shortened(cell) for cell in row) for row in analysis.rows[:MOST_ROWS])
    return Table("Rows (results.csv)", analysis.columns, rows, note, left, folded=len(rows) > FOLDED_ROWS)


def _numeric(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def _shortened(text: str) -> str:
    """A number to five digits, anything else as it is."""
    return number(float(text), 5) if _numeric(text) and text and not text.lstrip("-").isdecimal() else text


def others(run: Run) -> Section:
    """Numbers of training that no panel above shows, all settings and the whole summary."""
    covered = names.known(names.GRADIENTS, names.INNER) | set(names.LEARNING) | {metric_of(run)}
    own = names.own_panels([k for k in keys(run.of("train")) if k not in covered])
    found = measures.draw_panels("others", run.of("train"), own)
    summary = json.dumps(run.summary, indent=2, ensure_ascii=False) if run.summary else ""
    texts = {"All settings (config.yaml)": run.config_text, "The whole summary (summary.json)": summary}
    details = tuple((line, text) for line, text in texts.items() if text)
    missing = "" if run.config_text else "config.yaml is not there: the settings are unknown."
    return dataclasses.replace(_drawn([found.drawing], missing, found.text), details=details, missing=missing)


def _drawn(drawings: Sequence[Drawing | None], missing: str, *texts: str) -> Section:
    """A section of what could be drawn or said, else of what is missing."""
    shown, said = tuple(d for d in drawings if d), tuple(text for text in texts if text)
    return Section(said, shown) if shown or said else Section(missing=missing)
