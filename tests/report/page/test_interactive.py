"""The interactive page: its one script, its numbers as text, and what a reader does with it in chromium."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers.report_folders import records, train_record, write_run

from metarun.report.figures.chart import MOST_POINTS, Chart, Series, to_json
from metarun.report.write import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
EVIL = "</script><script>alert('x')</script>\"><img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def written(folder: Path, *runs: Path) -> str:
    return write_report(runs, folder / "page.html", interactive=True).read_text(encoding="utf-8")


def test_its_policy_allows_the_one_script_that_it_holds_and_no_network(tmp_path: Path) -> None:
    page = written(tmp_path, write_run(tmp_path / "run"))
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(str(a["content"]) for t, a in Tags(page).tags if t == "meta" and a.get("http-equiv"))
    nothing = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    expected = f"{nothing}; script-src 'sha256-{digest}'"
    assert policy == expected
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|eval|innerHTML|import)\s*\(", script)


def test_names_of_a_run_stay_text_in_its_numbers(tmp_path: Path) -> None:
    lines = [*records(), *(train_record(s, **{EVIL: float(s)}) for s in (50, 60, 70))]
    folder = write_run(tmp_path / "run", {"algo": EVIL, "data": EVIL}, lines=lines)
    other = write_run(tmp_path / "other", {"algo": EVIL + "2", "data": EVIL}, lines=lines)
    for runs in ((folder,), (folder, other)):
        page = written(tmp_path, *runs)
        assert page.count("<script") == 1
        tags = Tags(page).tags
        assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
        assert all(str(a["src"]).startswith("data:image/") for t, a in tags if t == "img")
        stored = [json.loads(str(a["data-charts"])) for _, a in tags if "data-charts" in a]
        assert stored
        assert "could not be made" not in page


def test_a_chart_has_the_numbers_of_its_records_and_null_for_the_rest() -> None:
    y = np.array([1.0, np.nan, 3.0, np.inf])
    (chart,) = json.loads(to_json([Chart("t", "x", "y", [Series("a", np.array([2.0, 1.0, 3.0, 4.0]), y)])]))
    assert chart["series"][0]["x"] == [1.0, 2.0, 3.0, 4.0]
    assert chart["series"][0]["y"] == [None, 1.0, 3.0, None]
    long = np.arange(5 * MOST_POINTS, dtype=float)
    (chart,) = json.loads(to_json([Chart("t", "x", "y", [Series("a", long, long)])]))
    assert len(chart["series"][0]["y"]) == MOST_POINTS
    assert chart["series"][0]["y"][:2] == [2.0, 7.0]


def test_a_first_loss_that_flattens_the_rest_begins_on_a_logarithmic_axis() -> None:
    steps = np.arange(20.0)
    flattened, even = np.array([50.0, 9.0, *np.full(18, 2.0)]), np.linspace(1, 2, 20)
    charts = [Chart("t", "x", "y", [Series("a", steps, y)]) for y in (flattened, even, flattened - 3)]
    assert [chart["log"] for chart in json.loads(to_json(charts))] == [True, False, False]


PROBE = """
<script>
addEventListener("error", e => document.body.dataset.failed = e.message);
addEventListener("load", () => setTimeout(() => {
  const over = document.querySelector(".u-over"), box = over.getBoundingClientRect();
  const mouse = (type, x, y, target) => (target || over).dispatchEvent(new MouseEvent(type, {
    bubbles: true, button: 0, movementX: 9, movementY: 0,
    clientX: box.left + x * box.width, clientY: box.top + y * box.height,
  }));
  const report = {};
  const axis = () => document.querySelector(".uplot").textContent;
  mouse("mousemove", 0.5, 0.5);
  setTimeout(() => {
    report.hover = [...document.querySelectorAll(".panel")][0].querySelector(".u-value").textContent;
    mouse("mousedown", 0.3, 0.5); mouse("mousemove", 0.6, 0.5, document); mouse("mousemove", 0.6, 0.5);
    mouse("mouseup", 0.6, 0.5, document);
    setTimeout(() => {
      mouse("mousemove", 0.02, 0.5);
      setTimeout(() => {
        report.zoomed = [...document.querySelectorAll(".panel")][0].querySelector(".u-value").textContent;
        const log = document.querySelector("button.log");
        report.log = [log.getAttribute("aria-pressed")]; log.click(); report.log.push(log.getAttribute("aria-pressed"));
        const head = document.querySelector("th.sorts"); head.click(); head.click();
        report.sorted = head.getAttribute("aria-sort");
        report.panels = document.querySelectorAll(".panel canvas").length;
        document.body.dataset.found = JSON.stringify(report);
      }, 100);
    }, 100);
  }, 100);
}, 300));
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_pointing_zooming_axes_and_sorting_work_in_a_browser(tmp_path: Path) -> None:
    """The policy is lifted for a second script that plays the reader; that the page's own runs under it is the next."""
    page = written(tmp_path, write_run(tmp_path / "run", lines=records(range(10, 410, 10))))
    opened = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page, count=1)
    (tmp_path / "opened.html").write_text(opened.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    dom = in_browser(tmp_path / "opened.html", "--dump-dom")
    assert "data-failed" not in dom.stdout
    found = json.loads(html.unescape(re.findall(r'data-found="(.*?)"', dom.stdout)[0]))
    assert 150 < float(found["hover"]) < 260  # the middle of 10 to 400 steps
    assert 100 < float(found["zoomed"]) < 160  # the left end of what was dragged over
    assert found["log"] in (["true", "false"], ["false", "true"])
    assert found["sorted"] == "descending"
    assert found["panels"] > 5


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_draws_itself_under_its_own_policy_without_a_complaint(tmp_path: Path) -> None:
    runs = write_run(tmp_path / "a"), write_run(tmp_path / "b", {"algo": "x"})
    write_report(runs, tmp_path / "page.html", interactive=True)
    done = in_browser(tmp_path / "page.html", "--dump-dom", "--enable-logging=stderr", "--v=0")
    assert 'class="u-over"' in done.stdout
    assert "CONSOLE" not in done.stderr


def in_browser(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    usual = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=20000")
    command = [str(CHROMIUM), *usual, *flags, "--window-size=1300,1000", f"--user-data-dir={page.parent / 'profile'}"]
    return subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=300)
