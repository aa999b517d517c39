"""One HTML page that needs nothing else: figures inside as images, no address to fetch.

The template escapes every text; a policy in the page's head forbids the network and every script, but on an interactive
page the one that is written into it here: its hash stands in the policy. Its numbers are in attributes, as text.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from metarun.report.figures.chart import to_json
from metarun.report.figures.drawing import svg_uri
from metarun.report.page.card import build_card
from metarun.report.page.comparison import comparison_sections
from metarun.report.page.run import Section, failed_section, run_sections
from metarun.report.read.runs import Run
from metarun.report.verdict.judge import judge
from metarun.report.verdict.sentence import by_question

TEMPLATES = Path(__file__).parent / "templates"
UPLOT = Path(__file__).parent / "uplot"  # draws the charts of interactive pages; MIT licence, beside it


def page_sections(runs: Sequence[Run], others: Sequence[Path] = ()) -> list[Section]:
    """Return the sections of one run, or of the comparison of several."""
    return run_sections(runs[0]) if len(runs) == 1 and not others else comparison_sections(runs, others)


class Image(NamedTuple):
    address: str
    alt: str
    width: int  # pixels
    name: str
    charts: str  # JSON; empty without


def render(
    runs: Sequence[Run], others: Sequence[Path] = (), interactive: bool = False, refresh: int | None = None
) -> str:
    """Return the page of one run, or of several; `others` are the folders of jobs that left no run.

    An interactive page has a script; one with `refresh` loads itself again after so many seconds.
    """
    script = (UPLOT / "uPlot.iife.min.js").read_text(encoding="utf-8") if interactive else ""
    script += (TEMPLATES / "report.js").read_text(encoding="utf-8") if interactive else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    styles = [TEMPLATES / "style.css", *([UPLOT / "uPlot.min.css", TEMPLATES / "report.css"] if interactive else [])]
    cards, single = [build_card(run) for run in runs], len(runs) == 1 and not others
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(
        title=cards[0].title if single else f"Comparison of {len(cards)} runs",
        single=single,
        verdict=by_question(judge(runs, others)),
        sections=[_embed_figures(section, interactive) for section in page_sections(runs, others)],
        runs=list(zip(runs, cards, strict=True)),
        style="\n".join(path.read_text(encoding="utf-8") for path in styles),
        script=script,
        script_policy=f"; script-src 'sha256-{digest}'" if interactive else "",
        refresh=refresh,
    )


def _embed_figures(section: Section, interactive: bool) -> tuple[Section, list[Image]]:
    """The section and its images. A page has 96 dots an inch, a PNG 200."""
    try:
        images = [
            Image(svg_uri(d.figure), d.alt, round(96 * d.figure.get_figwidth()), d.name,
                  to_json(d.charts) if interactive and d.charts else "")
            for d in section.drawings
        ]  # fmt: skip
    except Exception as error:  # of a name or number that cannot be drawn
        return dataclasses.replace(failed_section(error), title=section.title), []
    for alt, data in section.pictures:
        address = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
        images.append(Image(address, alt, int.from_bytes(data[16:20], "big") * 96 // 200, "", ""))
    return section, images
