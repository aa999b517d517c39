"""test.details=true: every query of the test in details.csv, and the hardest classes in the report."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.colours import class_folders

import metarun
from metarun.data.arrays import from_arrays
from metarun.report.read.runs import read_run
from metarun.report.tables.classes import class_table
from metarun.types import EpisodeSpec

TINY = ["train.steps=6", "train.tasks=2", "val.tasks=2", "test.tasks=9", "test.details=true", "device.threads=1"]


def read(folder: Path) -> list[dict[str, str]]:
    with open(folder / "details.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_classes_of_a_task_are_named_in_the_order_of_its_labels() -> None:
    """Class k of these rows has the value k."""
    label = np.repeat(np.arange(20), 9)
    data = from_arrays(label[:, None].astype(np.float32), label=[f"c{k}" for k in label], scale="none")
    spec = EpisodeSpec(3, 2, 4)
    for split in ("train", "test"):
        drawn = data.episodes(split, 1, 5, range(6), spec)
        names = data.class_names(split, 1, 5, range(6), spec)
        for x, y, classes in zip(*drawn.query, names, strict=True):
            assert [classes[k] for k in y] == [f"c{int(value)}" for value in x[:, 0]]


def test_each_query_of_pictures_has_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is a class, so the file says whether the class is right; one name is no Unicode."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    root = class_folders(tmp_path / "pictures", [f"c{k:02d}" for k in range(8)], each=6)
    for folder in sorted(root.iterdir()):
        (folder / "000.png").rename(folder / os.fsdecode(b"n\xe9e.png"))
    size = ["data.ways=2", "data.image_size=16", "data.queries=3", "data.test_queries=3", "model.filters=4"]
    split = [f"data.root={root}", "data.split=ratio", "data.ratios=[0.4,0.3,0.3]", "device.compile=off"]
    metarun.run(metarun.compose(["data=folder", "algo=protonet", *TINY, *size, *split]), tmp_path / "run")
    rows = read(tmp_path / "run")
    assert list(rows[0])[:4] == ["task", "query", "picture", "class"]
    assert all(row["picture"].partition("/")[0] == row["class"] for row in rows)
    names = {row["picture"].partition("/")[2] for row in rows}
    assert names == {"n\\udce9e.png", *(f"{i:03d}.png" for i in range(1, 6))}


def test_the_share_of_right_rows_is_the_accuracy(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    label = np.repeat(np.arange(20), 12)
    x = label[:, None] % 4 + generator.normal(size=(240, 3)) / 2  # classes that differ by 4 are the same
    data = from_arrays(x, label=[f"class {k}" for k in label])
    config = metarun.compose(["data=own", "algo=protonet", *TINY, "data.ways=4", "data.queries=5"])
    summary = metarun.run(config, tmp_path / "run", dataset=data).summary
    rows = read(tmp_path / "run")
    assert len(rows) == 9 * 4 * 5
    numbers = [int(row["row"].removeprefix("row ")) for row in rows]
    assert [row["class"] for row in rows] == [f"class {label[number]}" for number in numbers]
    assert np.mean([int(row["correct"]) for row in rows]) == pytest.approx(summary["mean"], abs=1e-6)
    assert {row["class"] for row in rows} <= {*data.members["test"]}
    assert all((row["class"] == row["predicted"]) == (row["correct"] == "1") for row in rows)
    assert all(float(row["p_predicted"]) >= float(row["p_class"]) for row in rows)
    table = class_table(read_run(tmp_path / "run"))
    accuracies = [float(cells[1].removesuffix(" %")) for cells in table.rows]
    assert accuracies == sorted(accuracies)
    assert sum(int(cells[2]) for cells in table.rows) == len(rows)
    page = (tmp_path / "run/report.html").read_text()
    assert all(title in page for title in ("most often taken for", "Confusion matrix of 4 classes", "Hardest rows"))


def test_a_regression_has_targets_predictions_and_deviations(tmp_path: Path) -> None:
    for algo, deviates in (("maml", False), ("cnp", True)):
        config = metarun.compose([f"algo={algo}", *TINY, "report=false", "device.compile=off"])
        summary = metarun.run(config, tmp_path / algo).summary
        rows = read(tmp_path / algo)
        assert len(rows) == 9 * 100
        assert ("deviation0" in rows[0]) == deviates
        error = np.mean([(float(row["predicted0"]) - float(row["y0"])) ** 2 for row in rows])
        expected = summary["beside"]["mse"]["mean"] if deviates else summary["mean"]
        assert error == pytest.approx(expected, rel=1e-4)


def test_without_details_there_is_no_such_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    metarun.run(metarun.compose([*TINY, "test.details=false", "report=false"]), tmp_path / "run")
    assert not (tmp_path / "run/details.csv").exists()
    assert not read_run(tmp_path / "run").details.confusion
