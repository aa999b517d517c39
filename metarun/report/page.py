"""One HTML page that needs nothing else: figures inside as images, no script, no address to fetch.

The template escapes every text; a policy in the page's head forbids scripts and the network on top of it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import jinja2

from metarun.report.card import Card, card
from metarun.report.compare import of_runs
from metarun.report.drawing import svg_uri
from metarun.report.read import Run
from metarun.report.sections import of_run

TEMPLATES = Path(__file__).parent / "templates"


def render(runs: Sequence[Run]) -> str:
    """The page of one run, or the comparison of several."""
    sections = of_run(runs[0]) if len(runs) == 1 else of_runs(runs)
    cards = [card(run) for run in runs]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.globals |= {"svg": svg_uri, "png": png_uri}
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    template = environment.get_template("page.html.j2")
    runs_and_cards = list(zip(runs, cards, strict=True))
    return template.render(title=title(cards), sections=sections, runs=runs_and_cards, style=style)


def title(cards: Sequence[Card]) -> str:
    return cards[0].title if len(cards) == 1 else f"Comparison of {len(cards)} runs"


def png_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
