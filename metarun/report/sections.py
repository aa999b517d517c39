"""What a page is made of, and the sections of one run's page. A section that lacks its numbers says which."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metarun.report import charts, convergence, measures, names
from metarun.report.drawing import Drawing
from metarun.report.facts import adaptation, keys, metric_of
from metarun.report.files import Analysis
from metarun.report.read import Run
from metarun.report.table import Table
from metarun.report.text import count, figure, is_number, number, with_unit

MOST_EMBEDDED = 400_000  # bytes of an analysis's figure
MOST_ROWS = 40  # of an analysis's table, and adaptation steps


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading."""

    title: str
    text: tuple[str, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[tuple[str, bytes], ...] = ()  # a PNG and what it shows
    missing: str = ""
    details: tuple[tuple[str, str], ...] = ()  # a summary line and preformatted text


def of_run(run: Run) -> list[Section]:
    """All sections of one run, in the order of reading."""
    return [
        learning(run),
        adapting(run),
        gradients(run),
        inner_loop(run),
        probes(run),
        layers(run),
        Section("Convergence", **convergence.described(run)),
        alarms(run),
        *analyses(run),
        others(run),
    ]


def learning(run: Run) -> Section:
    drawing = charts.learning(run)
    text = (
        "Thin lines are single records, thick ones their running mean. Validation is on fixed tasks; training loss and "
        "figure are of the tasks of each step, before it."
    )
    if drawing is None:
        return Section("Learning curve", missing="The run logged neither training nor validation.")
    return Section("Learning curve", (text,), (drawing,))


def adapting(run: Run) -> Section:
    curve, title = adaptation(run), "Adaptation at test"
    if not curve:
        return Section(title, missing="The summary holds no test.")
    drawing = charts.adapting(run)
    if drawing is None:
        return Section(title, ("The learner adapts in a single step or in none: there is no curve.",))
    return Section(title, drawings=(drawing,), tables=(adaptation_table(run),))


def adaptation_table(run: Run) -> Table:
    """The test after each adaptation step."""
    metric = metric_of(run)
    rows = tuple(
        (number(r.get("step")), figure(metric, r.get("mean"), r.get("ci95"), unit=False), number(r.get("loss")))
        for r in run.summary["curve"]
        if isinstance(r, Mapping)
    )
    note = f"± is half of a 95 % interval over {count(run.summary.get('n_tasks'))} tasks."
    columns = ("adaptation steps", with_unit(metric), "query loss")
    return Table("After each adaptation step", columns, rows[:MOST_ROWS], note)


def gradients(run: Run) -> Section:
    drawing = measures.draw_panels("gradients", run.of("train"), names.GRADIENTS)
    missing = "No measures of the meta-gradient were logged (diagnostics=off, or no training)."
    return _drawn("Meta-gradient", drawing, missing)


def inner_loop(run: Run) -> Section:
    train = run.of("train")
    if not [k for k in keys(train) if k in names.known(names.INNER) and k != "loss"]:
        missing = (
            "Nothing was logged of an inner loop: the learner has none, diagnostics=off, or there was no training."
        )
        return Section("Inner loop", missing=missing)
    panels = measures.draw_panels("inner_loop", train, names.INNER)
    profiles = measures.draw_profiles("along_inner_loop", train)
    return Section("Inner loop", drawings=tuple(d for d in (panels, profiles) if d))


def probes(run: Run) -> Section:
    records = run.of("probe")
    if not records:
        return Section("Probes", missing="No probes on fixed tasks were logged; diagnostics=full takes them.")
    listed = names.known(names.PROBES)
    own = names.own_panels([key for key in keys(records) if key not in listed])
    found = (
        measures.draw_panels("probes", records, [*names.PROBES, *own]),
        measures.draw_profiles("probe_profiles", records),
        measures.draw_layers("probe_layers", records),
    )
    return Section("Probes", ("Measured on the same fixed tasks each time.",), tuple(d for d in found if d))


def layers(run: Run) -> Section:
    drawing = measures.draw_layers("layers", run.of("train"))
    return _drawn("Layers", drawing, "No numbers of single layers were logged.")


def others(run: Run) -> Section:
    """Numbers of training that no panel above shows, all settings and the whole summary."""
    covered = names.known(names.GRADIENTS, names.INNER) | set(names.LEARNING) | {metric_of(run)}
    own = names.own_panels([k for k in keys(run.of("train")) if k not in covered])
    drawing = measures.draw_panels("others", run.of("train"), own)
    texts = {"All settings (config.yaml)": run.config_text, "The whole summary (summary.json)": _json(run.summary)}
    details = tuple((name, text) for name, text in texts.items() if text)
    missing = "" if run.config_text else "config.yaml is not there: the settings are unknown."
    return Section("Everything else", drawings=(drawing,) if drawing else (), missing=missing, details=details)


def _json(summary: Mapping[str, Any]) -> str:
    return json.dumps(summary, indent=2, ensure_ascii=False) if summary else ""


def alarms(run: Run) -> Section:
    raised = run.summary.get("alarms")
    if not isinstance(raised, Mapping):
        return Section("Alarms", missing="This run did not record alarms.")
    if not raised:
        return Section("Alarms", ("None was raised.",))
    rows = tuple((str(name), *_alarm(alarm)) for name, alarm in raised.items())
    return Section(
        "Alarms",
        tables=(Table("Alarms raised", ("alarm", "times", "first step", "last step", "says"), rows, left=(0, 4)),),
    )


def _alarm(alarm: Any) -> tuple[str, ...]:
    if not isinstance(alarm, Mapping):
        return number(alarm), "", "", ""
    return tuple(number(alarm.get(key)) for key in ("count", "first", "last", "message"))


def analyses(run: Run) -> list[Section]:
    if not run.analyses:
        missing = f"There are none yet: metarun job=analyze run={run.path} analysis=NAME makes them."
        return [Section("Analyses", missing=missing)]
    return [_analysis(a) for a in run.analyses]


def _analysis(analysis: Analysis) -> Section:
    title, texts = f"Analysis: {analysis.name}", []
    small = len(analysis.figure) <= MOST_EMBEDDED
    if not small:
        texts.append(f"Its figure is large and stays in {analysis.path / 'figure.png'}.")
    pictures = ((f"Figure of the analysis {analysis.name}", analysis.figure),) if analysis.figure and small else ()
    left = tuple(k for k in range(len(analysis.columns)) if not all(_numeric(row[k]) for row in analysis.rows))
    more = analysis.more + max(0, len(analysis.rows) - MOST_ROWS)
    note = f"{more} more rows are in {analysis.path / 'results.csv'}." if more else ""
    rows = tuple(tuple(_shortened(cell) for cell in row) for row in analysis.rows[:MOST_ROWS])
    tables = [Table("results.csv", analysis.columns, rows, note, left)] if rows else []
    facts = tuple((str(k), number(v)) for k, v in analysis.results.items() if is_number(v) or isinstance(v, str))
    tables += [Table("results.json", ("key", "value"), facts, left=(0, 1))] if facts else []
    missing = "" if tables or pictures else "It has no results yet."
    return Section(title, tuple(texts), (), tuple(tables), pictures, missing)


def _numeric(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def _shortened(text: str) -> str:
    """A number to five digits, anything else as it is."""
    return number(float(text), 5) if _numeric(text) and text and not text.lstrip("-").isdecimal() else text


def _drawn(title: str, drawing: Drawing | None, missing: str) -> Section:
    return Section(title, drawings=(drawing,)) if drawing else Section(title, missing=missing)
