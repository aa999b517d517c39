"""One HTML page that needs nothing else: figures inside as images, no script, no address to fetch.

The template escapes every text; a policy in the page's head also forbids scripts and the network.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jinja2

from metarun.report.figures.drawing import svg_uri
from metarun.report.page.card import build_card
from metarun.report.page.comparison import comparison_sections
from metarun.report.page.run import Section, failed_section, run_sections
from metarun.report.read.runs import Run
from metarun.report.verdict.judge import judge
from metarun.report.verdict.sentence import by_question

TEMPLATES = Path(__file__).parent / "templates"


def page_sections(runs: Sequence[Run], others: Sequence[Path] = ()) -> list[Section]:
    """Return the sections of one run, or of the comparison of several."""
    return run_sections(runs[0]) if len(runs) == 1 and not others else comparison_sections(runs, others)


def render(runs: Sequence[Run], others: Sequence[Path] = ()) -> str:
    """Return the page of one run, or of several; `others` are the folders of jobs that left no run."""
    cards, single = [build_card(run) for run in runs], len(runs) == 1 and not others
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(
        title=cards[0].title if single else f"Comparison of {len(cards)} runs",
        single=single,
        verdict=by_question(judge(runs, others)),
        sections=[_embed_figures(section) for section in page_sections(runs, others)],
        runs=list(zip(runs, cards, strict=True)),
        style=(TEMPLATES / "style.css").read_text(encoding="utf-8"),
    )


def _embed_figures(section: Section) -> tuple[Section, list[tuple[str, str, int]]]:
    """The section and its images: address, alt text and width in pixels. A page has 96 dots an inch, a PNG 200."""
    try:
        images = [(svg_uri(d.figure), d.alt, round(96 * d.figure.get_figwidth())) for d in section.drawings]
    except Exception as error:  # of a name or number that cannot be drawn
        return dataclasses.replace(failed_section(error), title=section.title), []
    for alt, data in section.pictures:
        address = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
        images.append((address, alt, int.from_bytes(data[16:20], "big") * 96 // 200))
    return section, images
