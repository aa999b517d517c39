"""The figures of single test tasks, from a tasks.json that may hold anything."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.report_folders import write_run

from metarun.report.figures.drawing import style
from metarun.report.figures.tasks import draw_embedding, draw_episode, draw_fits, draw_values, short_names
from metarun.report.page.run import run_sections
from metarun.report.read.runs import read_run

PIXELS = base64.b64encode(np.arange(16, dtype=np.uint8).tobytes()).decode()


def episode(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {"task": 3, "which": "hardest", "classes": ["a/b", "a/c"], "shape": [4, 4, 1]}
    whole |= {"accuracy": 0.5, "support": {"class": [0, 1], "pixels": [PIXELS] * 2}}
    whole["queries"] = {"class": [0, 1], "predicted": [1, 1], "probability": [0.75, 0.5], "pixels": [PIXELS] * 2}
    return whole | changes


def test_a_wrong_query_is_marked_in_words_too() -> None:
    with style():
        drawing = draw_episode(episode())
    assert drawing is not None
    assert drawing.alt == "Test task 3, hardest: accuracy 50.0 %; 1 of 2 shown queries wrong."
    words = [text.get_text() for text in drawing.figure.axes[0].texts]
    assert "\N{MULTIPLICATION SIGN} 2, 75 %" in words
    assert "50 %" in words
    assert {"1  b", "2  c"} <= {*words}  # without the folder that both are in
    assert draw_episode({"task": 1}) is None
    assert short_names(["x/a", "x/a"]) == ["a", "a"]


def test_a_fit_has_the_points_and_a_line_for_each_step() -> None:
    task = {"task": 0, "which": "easiest", "predicted": [[0.0, 0.0], [0.5, 1.0], [1.0, 2.0]], "targets": [2.0, 1.0]}
    task |= {"query_x": [1.0, 0.0], "support": [[0.5], [1.5]]}
    stored = {"x": [0.0, 1.0], "steps": [0, 1, 5], "tasks": [task], "names": {"x": ["hours"], "y": []}}
    with style():
        (axes,) = draw_fits(stored, np.array([0.25]), "mse").figure.axes
        values = draw_values({"steps": [0, 5], "tasks": [{"targets": [1.0], "predicted": [[0.0], [1.0]]}]}, None, "mse")
    named = {line.get_label(): line for line in axes.lines}
    assert [*named] == ["true values (queries)", "before adaptation", "after 1 step", "after 5 steps", "support"]
    np.testing.assert_allclose(named["after 5 steps"].get_xydata(), [[0, 1], [1, 2]])
    assert axes.get_title(loc="left") == "Test task 0, easiest: MSE 0.2500"
    assert axes.get_xlabel() == "hours"
    assert len(values.figure.axes[0].lines) == 3


def test_features_are_drawn_for_learners_that_have_them() -> None:
    found = {"support": [[0, 0], [1, 1]], "queries": [[0, 1]], "support_class": [0, 1], "query_class": [0]}
    with style():
        assert draw_embedding([episode()]) is None
        assert draw_embedding([episode(embedding=found | {"explained": [0.75, 0.25]})]) is not None


@pytest.mark.parametrize(
    "stored",
    [
        {"kind": "episodes", "tasks": [episode(shape=[1, 1])]},
        {"kind": "episodes", "tasks": [episode(classes=[str(k) for k in range(100_000)])] * 50},
        {"kind": "functions", "tasks": [{}], "x": "text", "steps": None},
        {"kind": "values", "tasks": 3},
        {"kind": 7, "tasks": [[], None], "classes": {"tasks": "x", "rows": [[1, 2, 3, -4]]}},
        {"classes": {"rows": [[0, "a", "b", 2]], "tasks": None}},
    ],
)
def test_a_file_of_other_contents_costs_no_more_than_its_section(tmp_path: Path, stored: Any) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "tasks.json").write_text(json.dumps(stored))
    with style():
        sections = run_sections(read_run(folder))
    assert sum("could not be made" in section.missing for section in sections) <= 1
    assert sum(len(section.drawings) for section in sections) < 20


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (tmp_path / "secret.json").write_text('{"tasks": []}')
    (folder / "tasks.json").symlink_to(tmp_path / "secret.json")
    run = read_run(folder)
    assert run.tasks == {}
    assert any("tasks.json is left out: it is a link" in sentence for sentence in run.missing)
