"""The documentation site: it has every page, links lead somewhere, and the settings are those of the source."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
HOOKS = runpy.run_path(str(ROOT / "docs/pages.py"))
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))
PAGES = [ROOT / name for name in HOOKS["OUTSIDE"]] + sorted((ROOT / "docs").glob("*.md")) + TUTORIALS


def entries(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for inner in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from entries(inner)


def anchors_of(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {HOOKS["make_anchor"](heading) for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)}


def test_the_navigation_has_every_page() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} | {*HOOKS["OUTSIDE"].values(), "checkpoints/README.md"}
    pages |= {f"tutorials/{path.name}" for path in TUTORIALS}
    assert sorted([*entries(SITE["nav"]), "benchmarks.md"]) == sorted(pages)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_anchors(page: Path) -> None:
    for path, anchor in HOOKS["find_links"](page.read_text(encoding="utf-8")):
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), path
        assert target.exists(), path
        assert not anchor or anchor in anchors_of(target), f"{path}#{anchor}"


def test_the_settings_are_those_of_the_source() -> None:
    script = runpy.run_path(str(ROOT / "docs/settings.py"))
    start, end = script["MARKERS"]
    listed = (ROOT / "docs/settings.md").read_text(encoding="utf-8").partition(start)[2].partition(end)[0]
    assert listed.strip() == script["tables"]().strip(), "python docs/settings.py renews the page"
