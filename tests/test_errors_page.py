"""docs/errors.md lists the messages that the source has."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_is_that_of_the_source() -> None:
    script = runpy.run_path(str(ROOT / "docs/errors.py"))
    start, end = script["MARKERS"]
    page = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    listed = page.partition(start)[2].partition(end)[0]
    assert listed.strip() == script["table"]().strip(), "python docs/errors.py renews the page"
