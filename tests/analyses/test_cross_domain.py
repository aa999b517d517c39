"""The weights of a run on test tasks of other data sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.analyses import Run, analyse, refusal
from helpers.colours import class_folders
from PIL import Image

import metarun


@pytest.fixture(scope="module")
def other(folder: Path) -> Path:
    """Six classes of pictures of noise, which are hard to tell apart."""
    for name in (f"kind{i}" for i in range(6)):
        (folder / "other" / name).mkdir(parents=True)
        draw = np.random.default_rng([*name.encode()])
        for i in range(5):
            pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "other" / name / f"{i}.png")
    return folder / "other"


def test_each_set_has_the_score_of_job_evaluate_and_an_interval_of_independent_samples(
    protonet: Run, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = f"analysis.sets={{new: {{data: folder, root: {other}, split: all}}, cub: {{root: {other}, split: ratio}}}}"
    summary, rows, _ = analyse(protonet, "cross_domain", sets, "analysis.tasks=6")
    own, new, cub = rows
    found = [(r["data"], r["own"], r["classes"]) for r in rows]
    assert found == [("folder", True, 6), ("new", False, 6), ("cub", False, 2)]
    assert own["mean"] == json.loads((protonet[1] / "summary.json").read_text())["mean"]
    assert new["changed"] == "image_size 84 to 16"
    assert "difference" not in own

    more = ["data=folder", f"data.root={other}", "data.csv=null", "data.split=all", "data.ways=2", "data.queries=2"]
    more += ["data.test_queries=2", "device.compile=false", "report=false"]
    config = metarun.compose(["job=evaluate", f"run={protonet[1]}", *more])
    tested = metarun.run(config, other.parent / "evaluated").summary
    assert (new["mean"], new["episodes"]) == (tested["mean"], tested["episodes_sha256"][:12])
    assert 0 < new["mean"] < 1

    apart = np.var(new["scores"], ddof=1) + np.var(own["scores"], ddof=1)
    assert new["difference"] == pytest.approx(np.mean(new["scores"]) - np.mean(own["scores"]))
    assert new["half_difference"] == pytest.approx(1.96 * (apart / 6) ** 0.5)
    assert summary["sets"]["cub"]["mean"] == cub["mean"]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["data", "classes", "ways", "shots", "test", "accuracy", "difference", "changed"] in lines
    assert ["folder", "(the", "run's)", "6", "2", "1", "100.00", "±", "0.00", "%"] in lines


def test_population_statistics_are_those_of_the_set_or_of_the_run(protonet: Run, other: Path) -> None:
    sets = f"analysis.sets={{new: {{data: folder, root: {other}, split: all}}}}"
    _, of_set, _ = analyse(protonet, "cross_domain", sets, "analysis.tasks=6")
    _, of_run, _ = analyse(protonet, "cross_domain", sets, "analysis.tasks=6", "analysis.statistics=run")
    assert of_set[0] == of_run[0]
    assert of_set[1]["episodes"] == of_run[1]["episodes"]
    assert of_set[1]["scores"] != of_run[1]["scores"]


def test_a_set_without_enough_classes_is_left_out_with_the_reason(
    protonet: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = class_folders(folder / "few", [f"c{i}" for i in range(4)], each=5)
    sets = f"analysis.sets={{few: {{data: folder, root: {root}}}}}"
    _, rows, _ = analyse(protonet, "cross_domain", sets, "analysis.tasks=3")
    reason = rows[1]["left_out"]
    assert reason.startswith("ways=2: the test split has 1 class, and a task needs 2 or more")
    assert reason.endswith("data.split=all tests a trained run on all 4 classes")
    assert "left out: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("null", "analysis.sets=None: must be {NAME: PATH, ...}"),
        ("{birds: /nowhere}", "analysis.sets.birds=/nowhere: birds is no data set, choices: "),
        ("{x: {data: fodler}}", "analysis.sets.x.data=fodler: did you mean folder?"),
        ("{cub: {root: /nowhere, ways: 3}}", "analysis.sets.cub.ways=3: cannot be set; all sets have that of the run"),
        ("{cub: {rot: /nowhere}}", "analysis.sets.cub.rot: no such setting of data=cub, did you mean root"),
        ("{cub: /no/such}", "analysis.sets.cub: data.root=/no/such: there is no such folder"),
        ("{cub: 3}", "analysis.sets.cub=3: must be {NAME: PATH, ...}"),
        ("{sinusoid: null}", "analysis.sets.sinusoid=sinusoid: is regression of inputs [1]; the run learned"),
    ],
)
def test_wrong_sets_are_refused_in_one_line_before_anything_is_measured(protonet: Run, sets: str, message: str) -> None:
    assert refusal(lambda: analyse(protonet, "cross_domain", f"analysis.sets={sets}")).startswith(message)
