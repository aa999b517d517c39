"""A trained run tested on a folder of its own: only what the job draws from has to be there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.colours import class_folders

import metarun
from metarun.errors import UserError
from metarun.report.statistics.intervals import normal_interval, t_interval
from metarun.training.experiment import assemble

TINY = ["data.image_size=16", "data.ways=3", "data.shots=2", "data.queries=2", "data.test_queries=2", "model.filters=4"]
SHORT = ["train.steps=2", "train.tasks=2", "train.eval_every=2", "val.tasks=2", "test.tasks=5", "test.steps=1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trained runs, and the folders of other classes: three in all, and split folders without the one for val."""
    home = tmp_path_factory.mktemp("home")
    class_folders(home / "images", [f"colour{i:02d}" for i in range(15)], each=5)
    class_folders(home / "three", ["ochre", "teal", "violet"], each=5)
    class_folders(home / "parts/train", ["ochre", "teal", "violet"], each=5)
    class_folders(home / "parts/test", ["pink", "red", "lime"], each=5)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("METARUN_CACHE", str(home / "cache"))
        for norm in ("batch", "population"):
            settings = [
                "algo=fomaml",
                "data=folder",
                f"data.root={home / 'images'}",
                f"model.norm={norm}",
                *TINY,
                *SHORT,
            ]
            metarun.run(metarun.compose([*settings, "report=false", "device.compile=false"]), home / norm)
    return home


@pytest.fixture(autouse=True)
def _cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(home / "cache"))


def evaluate(home: Path, tmp_path: Path, *more: str, norm: str = "batch") -> dict[str, object]:
    return metarun.load(home / norm).evaluate(*more, "report=false", folder=tmp_path / "out").summary


@pytest.mark.parametrize("chunk", ["auto", "null"])
def test_all_classes_of_a_folder_are_test_classes(home: Path, tmp_path: Path, chunk: str) -> None:
    summary = evaluate(home, tmp_path, f"data.root={home / 'three'}", "data.split=all", f"device.chunk_size={chunk}")
    assert (summary["split"], summary["classes"]) == ("all", {"train": 0, "val": 0, "test": 3})
    assert summary["n_tasks"] == 5


def test_only_the_test_split_has_to_be_there(home: Path, tmp_path: Path) -> None:
    summary = evaluate(home, tmp_path, f"data.root={home / 'parts'}")
    assert summary["classes"] == {"train": 3, "val": 0, "test": 3}


def test_too_few_test_classes_are_refused_with_the_setting_that_helps(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        evaluate(home, tmp_path, f"data.root={home / 'three'}")
    assert str(caught.value) == (
        "data.ways=3: the test split has 1 class, and a task needs 2 or more: the 3 classes are divided into "
        "1 for train, 1 for val, 1 for test; 2 ways in each need 6 classes; "
        "data.split=all tests a trained run on all 3 classes"
    )


def test_population_statistics_without_training_images_are_of_those_that_are_there(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(home, tmp_path, f"data.root={home / 'three'}", "data.split=all", norm="population")
    assert f"norm=population: data.root={home / 'three'} has no training classes" in capsys.readouterr().err


def test_training_names_the_split_that_is_missing(home: Path, tmp_path: Path) -> None:
    settings = metarun.compose(["algo=fomaml", "data=folder", f"data.root={home / 'parts'}", *TINY, *SHORT])
    with pytest.raises(UserError) as caught:
        metarun.run(settings, tmp_path / "out")
    assert str(caught.value) == (
        "data.split=given: leaves no class for val (3 for train, 3 for test); "
        "ratio divides all classes, all makes them test classes"
    )


def test_disjoint_test_tasks_are_as_many_as_the_classes_allow(home: Path, tmp_path: Path) -> None:
    """15 classes, five a split: on all of them five tasks of three ways, with Student's interval and the open one."""
    command = ["job=evaluate", f"run={home / 'batch'}", "data.split=all", "test.tasks=9", "report=false"]
    found = {}
    for classes in ("drawn", "disjoint"):
        summary = metarun.run(metarun.compose([*command, f"test.classes={classes}"]), tmp_path / classes).summary
        found[classes] = summary["interval"], summary["n_tasks"]
        stored = json.loads((tmp_path / classes / "test.json").read_text())
        assert stored["result"]["interval"] == summary["interval"]
        scores = np.array(stored["scores"])[stored["steps"].index(summary["headline_step"])]
        expected = (normal_interval if classes == "drawn" else t_interval)(scores)
        assert (summary["mean"], summary["ci95"]) == pytest.approx(expected, rel=1e-6)
    assert found == {"drawn": ("closed", 9), "disjoint": ("open", 5)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["algo=maml", "data=sinusoid"], "test.classes=disjoint: data=sinusoid has no classes of images to divide"),
        (
            ["data.split=all", "data.ways=8", "data.test_queries=2"],
            "test.classes=disjoint: leaves 1 test tasks of 8 ways; choices: drawn",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused(home: Path, settings: list[str], message: str) -> None:
    images = [] if "data=sinusoid" in settings else ["algo=protonet", "data=folder", f"data.root={home / 'images'}"]
    with pytest.raises(UserError, match=message):
        assemble(dataclasses.replace(metarun.compose([*images, "test.classes=disjoint", *settings]), job="evaluate"))
