"""One HTML page that needs nothing else: figures inside as images, no script, no address to fetch.

The template escapes every text; a policy in the page's head forbids scripts and the network on top of it.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jinja2

from metarun.report.figures.drawing import svg_uri
from metarun.report.page.card import Card, card
from metarun.report.page.comparison import of_runs
from metarun.report.page.run import Section, failed, of_run
from metarun.report.read.runs import Run

TEMPLATES = Path(__file__).parent / "templates"


def render(runs: Sequence[Run], others: Sequence[Path] = ()) -> str:
    """The page of one run, or the comparison of several; `others` are the folders of jobs that left no run."""
    sections = of_run(runs[0]) if len(runs) == 1 and not others else of_runs(runs, others)
    cards = [card(run) for run in runs]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.globals |= {"png": png_uri, "png_width": png_width}
    return environment.get_template("page.html.j2").render(
        title=title(cards, others),
        single=len(runs) == 1 and not others,
        sections=[with_images(section) for section in sections],
        runs=list(zip(runs, cards, strict=True)),
        style=(TEMPLATES / "style.css").read_text(encoding="utf-8"),
    )


def with_images(section: Section) -> tuple[Section, list[tuple[str, str, int]]]:
    """A section and its figures: address, description and width in pixels."""
    try:
        images = [(svg_uri(d.figure), d.alt, round(96 * d.figure.get_figwidth())) for d in section.drawings]
    except Exception as error:  # of a name or number that cannot be drawn
        return dataclasses.replace(failed(error), title=section.title), []
    return section, images


def title(cards: Sequence[Card], others: Sequence[Path]) -> str:
    return cards[0].title if len(cards) == 1 and not others else f"Comparison of {len(cards)} runs"


def png_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def png_width(data: bytes) -> int:
    """In pixels of a page: analyses are drawn with 200 dots an inch, a page has 96."""
    return int.from_bytes(data[16:20], "big") * 96 // 200
