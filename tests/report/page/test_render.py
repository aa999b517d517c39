"""The page: one file that needs nothing else, whatever the run folders hold."""

from __future__ import annotations

import base64
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers.report_folders import PNG, SUMMARY, records, train_record, write_analysis, write_run

from metarun.report.figures.drawing import style, svg_uri
from metarun.report.page.run import learning_section
from metarun.report.read.runs import read_run
from metarun.report.write import write_report

FAILED = "could not be made"
EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """The tags, attributes and words of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def images(self) -> list[bytes]:
        """What is drawn, decoded."""
        sources = [str(attributes["src"]) for tag, attributes in self.tags if tag == "img"]
        return [base64.b64decode(source.partition(",")[2]) for source in sources]


def page_of(*folders: Path) -> Page:
    return Page(write_report(folders, folders[0].parent / "page.html"))


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a run like most."""
    return page_of(write_run(tmp_path_factory.mktemp("usual") / "run"))


@pytest.mark.usefixtures("undrawn")
def test_a_runs_page_is_written_into_its_folder_and_says_what_the_run_reached(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert write_report([folder]) == folder / "report.html"
    words = Page(folder / "report.html").words
    assert "maml on sinusoid, 10-shot, seed 0" in words
    assert "0.5000 ± 0.1000" in words
    assert "0123456789ab" in words
    assert FAILED not in words


def test_a_page_needs_nothing_else_and_runs_nothing(usual: Page) -> None:
    page = usual
    assert not {"script", "link", "iframe", "object", "embed", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), tag
            if name in ("src", "href"):
                assert str(value).startswith(("data:image/", "#"))
    policy = next(a for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
    assert str(policy["content"]).startswith("default-src 'none'")
    assert len(page.source) < 2_000_000


def test_every_figure_has_words_for_those_who_cannot_see_it(usual: Page) -> None:
    texts = [a["alt"] for tag, a in usual.tags if tag == "img"]
    assert len(texts) == 6
    assert all(texts)
    assert "Validation mse: 0.4 at 10, 0.1 at 40." in str(texts[0])


def test_a_figure_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    with style():
        first, second = (svg_uri(learning_section(run).drawings[0].figure) for _ in range(2))
    assert first == second


def test_names_with_html_in_them_stay_text(tmp_path: Path) -> None:
    summary = {"algo": EVIL, "data": EVIL, "reason": EVIL, "alarms": {EVIL: {"count": 1, "message": EVIL}}}
    lines = [*records(), train_record(50, **{EVIL: 1.0, f"grad_norm/{EVIL}": 2.0}), train_record(60, **{EVIL: 2.0})]
    folder = write_run(tmp_path / "<b>run", summary, {"choices.algo": EVIL}, lines)
    write_analysis(folder, "<i>seeds")
    other = write_run(tmp_path / "other", {"algo": EVIL + "2", "data": EVIL})
    for page in (page_of(folder), page_of(folder, other)):
        assert not {"script", "b", "i"} & {tag for tag, _ in page.tags}
        assert EVIL in page.words
        assert "<script" not in page.source
        assert not [image for image in page.images() if b"<script" in image]
        assert FAILED not in page.words


def test_names_that_a_plotting_library_would_take_for_a_formula_are_drawn(tmp_path: Path) -> None:
    names = ["$\\frac{1$", "_hidden", "100 % {x} & \\n", "a\nb\x07", "名前", "x" * 300]
    runs = [write_run(tmp_path / str(at), {"algo": name}) for at, name in enumerate(names)]
    page = page_of(*runs)
    assert FAILED not in page.words
    for name in names[:2]:
        assert name in page.words


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not turned into images, which takes most of the time."""
    monkeypatch.setattr("metarun.report.page.render.svg_uri", lambda figure: "data:image/svg+xml;base64,")


BROKEN = {
    "no summary": lambda folder: (folder / "summary.json").unlink(),
    "no settings": lambda folder: (folder / "config.yaml").unlink(),
    "no metrics": lambda folder: (folder / "metrics.jsonl").unlink(),
    "no clock": lambda folder: (folder / "timing.jsonl").unlink(),
    "no scores": lambda folder: (folder / "test.json").unlink(),
    "torn": lambda folder: (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text()[:-20]),
    "summary cut": lambda folder: (folder / "summary.json").write_text('{"mean": 0.'),
    "binary": lambda folder: (folder / "metrics.jsonl").write_bytes(bytes(range(256)) * 10),
    "settings alone": lambda folder: [p.unlink() for p in folder.iterdir() if p.name != "config.yaml"],
    "summary alone": lambda folder: [p.unlink() for p in folder.iterdir() if p.name != "summary.json"],
}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_shows_what_is_left_of_it_alone_and_among_others(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "run")
    BROKEN[name](folder)
    for page in (page_of(folder), page_of(folder, write_run(tmp_path / "whole"))):
        assert FAILED not in page.words
        assert "is missing" in page.words or "left out" in page.words or "damaged" in page.words


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("value", [None, "text", [], {"a": {"b": [1]}}, -1, 1e300])
def test_a_summary_of_other_kinds_of_values_is_shown_as_far_as_it_can_be(tmp_path: Path, value: Any) -> None:
    folder = write_run(tmp_path / "run", dict.fromkeys([*SUMMARY, "convergence"], value))
    for page in (page_of(folder), page_of(folder, write_run(tmp_path / "whole"))):
        assert FAILED not in page.words


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("value", [None, "text", [], {}])
def test_settings_and_records_of_other_kinds_are_shown_as_far_as_they_can_be(tmp_path: Path, value: Any) -> None:
    config = {f"{group}": value for group in ("seed", "algo", "data", "model", "train", "choices", "device")}
    lines = [{k: v if k in ("kind", "step") else value for k, v in record.items()} for record in records()]
    folder = write_run(tmp_path / "run", config=config, lines=lines)
    for page in (page_of(folder), page_of(folder, write_run(tmp_path / "whole"))):
        assert FAILED not in page.words


def test_a_diverged_run_says_so_and_marks_what_was_not_finite(tmp_path: Path) -> None:
    lines = [*records((10, 20)), train_record(30, loss=None, mse=None)]
    summary = {"status": "diverged", "reason": "loss at step 30", "diverged": True, "mean": None}
    page = page_of(write_run(tmp_path / "run", summary, lines=lines))
    assert "The run diverged: loss at step 30." in page.words
    assert "no test result" in page.words
    assert b"not finite" in page.images()[0]  # in the figure's legend


@pytest.mark.usefixtures("undrawn")
def test_sections_without_numbers_say_which_are_missing(tmp_path: Path) -> None:
    words = page_of(write_run(tmp_path / "run", {"alarms": None, "curve": None}, lines=[])).words
    for sentence in (
        "The run logged neither training nor validation.",
        "The summary holds no test.",
        "No metrics of the meta-gradient were logged",
        "No probes on fixed tasks were logged",
        "No metrics of single layers were logged.",
        "The summary holds no convergence metrics",
        "This run did not record alarms.",
        "This run has no analyses yet. To make one: metarun job=analyze",
    ):
        assert sentence in words


def test_numbers_that_nobody_listed_get_a_panel_and_those_that_never_change_a_sentence(tmp_path: Path) -> None:
    lines = [train_record(step, novel_measure=float(step), fixed_measure=0.5) for step in (10, 20, 30)]
    page = page_of(write_run(tmp_path / "run", lines=lines))
    assert [image for image in page.images() if b"novel measure" in image]
    assert "fixed measure 0.5" in page.words
    assert "outer learning rate 0.001" in page.words


def test_probes_are_drawn_with_what_they_are_held_against(tmp_path: Path) -> None:
    probe = [{"kind": "probe", "step": s, "rate_curvature": 0.1 * s, "cka/block0": 0.1 * s} for s in (1, 2, 3)]
    page = page_of(write_run(tmp_path / "run", lines=[*records(), *probe]))
    assert [image for image in page.images() if b"unstable above" in image]
    assert [image for image in page.images() if b"block0" in image]


@pytest.mark.usefixtures("undrawn")
def test_convergence_alarms_and_analyses_are_tables(tmp_path: Path) -> None:
    cost = {"steps": 20, "tasks": 100, "inner_gradients": 200, "seconds": 61.0}
    reached = {"name": "half_way", "value": 0.2, "reached": True, "at": cost, "censored_at": None}
    never = {"name": "0.01", "value": 0.01, "reached": False, "at": None, "censored_at": cost}
    trend = {"slope": -1e-5, "half": 5e-6, "verdict": "falling", "points": 4}
    convergence = {"evaluations": 4, "thresholds": [reached, never], "budget": cost, "trend": trend, "rate": None}
    alarms = {"loss_spike": {"count": 3, "first": 10, "last": 30, "message": "the loss jumped"}}
    folder = write_run(tmp_path / "run", {"convergence": convergence, "alarms": alarms})
    write_analysis(folder)
    page = page_of(folder)
    for words in ("half way", "> 1 min 1 s", "falling: -0.01 ± 0.005 in 1000 outer steps", "the loss jumped"):
        assert words in page.words
    assert "loss_spike (3 times)" in page.words
    assert "the tuned rate is best" in page.words
    assert "0.12346" in page.words
    assert PNG in page.images()


@pytest.mark.usefixtures("undrawn")
def test_a_large_figure_of_an_analysis_stays_in_its_file(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (write_analysis(folder) / "figure.png").write_bytes(PNG + bytes(1_000_000))
    page = page_of(folder)
    assert len(page.source) < 1_000_000
    assert "figure.png" in page.words


@pytest.mark.usefixtures("undrawn")
def test_the_command_is_what_was_typed_or_else_the_choices(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    words = page_of(folder).words
    assert "metarun algo=maml data=sinusoid model=mlp reg=none" in words
    assert "Built from the chosen groups" in words
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(["algo=maml", "data.root=/a b", "hydra.run.dir=x"]))
    words = page_of(folder).words
    assert "metarun algo=maml 'data.root=/a b'" in words
    assert "hydra.run.dir" not in words


@pytest.mark.usefixtures("undrawn")
def test_a_comparison_has_a_card_for_each_run_and_all_sections(tmp_path: Path) -> None:
    seeds = [write_run(tmp_path / f"maml{s}", {"seed": s, "mean": 0.4 + 0.1 * s}, {"seed": s}) for s in range(3)]
    other = write_run(tmp_path / "fomaml", {"algo": "fomaml"})
    page = page_of(*seeds, other)
    headings = re.findall(r"<h2>(.*?)</h2>", page.source)
    assert headings[:6] == [
        "Results", "Learning curves", "Adaptation at test", "Paired comparison", "Cost", "Training metrics",
    ]  # fmt: skip
    assert len(headings) == 10
    assert "3 seeds" in page.words
    assert FAILED not in page.words


def test_a_long_run_is_a_small_page_within_seconds(tmp_path: Path, usual: Page) -> None:
    folder = write_run(tmp_path / "run", lines=records(range(10, 7000, 10)))
    start = time.process_time()
    page = page_of(folder)
    assert time.process_time() - start < 6  # a second or two on a machine that does nothing else
    assert len(usual.source) < len(page.source) < 1_000_000
