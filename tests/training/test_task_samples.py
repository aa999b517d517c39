"""The test tasks that a run leaves for the pictures of its report, against computations of their own."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.colours import class_folders

import metarun
from metarun.data.arrays import from_arrays
from metarun.report.read.runs import read_run
from metarun.training.task_samples import choose_tasks

TINY = ["train.steps=4", "train.tasks=2", "val.tasks=2", "test.tasks=12", "device.threads=1", "device.compile=off"]


def stored(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "tasks.json").read_text())
    return found


def test_the_easiest_the_hardest_and_those_between_are_chosen() -> None:
    scores = torch.tensor([0.5, 0.9, 0.1, 0.7, torch.nan])
    assert choose_tasks(scores, True, 3) == {1: "easiest", 0: "typical", 4: "hardest"}
    assert choose_tasks(scores, False, 3) == {2: "easiest", 3: "typical", 4: "hardest"}
    assert choose_tasks(scores[:1], True, 3) == {0: "easiest"}


def test_the_fitted_functions_are_those_of_the_learner(tmp_path: Path) -> None:
    """The inner loop by hand: one step of gradient descent from the tested weights."""
    result = metarun.run(metarun.compose(["algo=maml", *TINY, "algo.test_inner_steps=3"]), tmp_path / "run")
    found = stored(tmp_path / "run")
    assert (found["kind"], found["steps"], len(found["tasks"])) == ("functions", [0, 1, 3], 4)
    scores = json.loads((tmp_path / "run/test.json").read_text())["scores"][3]
    hardest = next(row for row in found["tasks"] if row["which"] == "hardest")
    assert hardest["task"] == int(np.argmax(scores))
    x = torch.tensor(found["x"])[:, None]
    model = result.experiment.tested.model
    params = {name: value.clone().requires_grad_() for name, value in result.params.items()}
    support_x, support_y = (torch.tensor(part)[:, None] for part in hardest["support"])
    loss = (model.apply(params, support_x) - support_y).square().mean()
    gradients = torch.autograd.grad(loss, list(params.values()))
    rate = result.experiment.tested.inner_lr
    stepped = {name: p - rate * g for (name, p), g in zip(params.items(), gradients, strict=True)}
    for at, weights in ((0, params), (1, stepped)):
        expected = model.apply(weights, x)[:, 0].detach().numpy()
        np.testing.assert_allclose(hardest["predicted"][at], expected, atol=2e-5)
    page = (tmp_path / "run/report.html").read_text()
    assert "Test tasks" in page
    assert "could not be made" not in page


def test_an_episode_of_a_metric_learner_has_pictures_classes_and_a_map(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    label = np.repeat(np.arange(20), 12)
    x = (label % 4)[:, None] + generator.normal(size=(240, 6))
    data = from_arrays(x, label=[f"class {k}" for k in label])
    config = metarun.compose(["data=own", "algo=protonet", *TINY, "data.ways=4", "data.queries=5"])
    metarun.run(config, tmp_path / "run", dataset=data)
    found = stored(tmp_path / "run")
    scores = json.loads((tmp_path / "run/test.json").read_text())["scores"][0]
    assert [row["which"] for row in found["tasks"]] == ["easiest", "typical", "hardest"]
    for row in found["tasks"]:
        assert row["accuracy"] == pytest.approx(scores[row["task"]], abs=1e-6)
        assert all(name.startswith("class ") for name in row["classes"])
        assert "shape" not in row
        support, queries = (np.array(row["embedding"][key]) for key in ("support", "queries"))
        points = np.concatenate([support, queries])
        np.testing.assert_allclose(points.mean(0), 0, atol=1e-4)  # centred, and its two columns not correlated
        assert abs(points[:, 0] @ points[:, 1]) < 1e-3 * (points[:, 0] @ points[:, 0])
        assert 1 >= row["embedding"]["explained"][0] >= row["embedding"]["explained"][1] >= 0
    counted = read_run(tmp_path / "run").details
    assert counted.counted == 1  # one test task in ten
    assert sum(counted.confusion.values()) == 4 * 5


def test_the_pictures_of_an_episode_are_small_and_in_place(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pictures", [f"c{k:02d}" for k in range(8)], each=6)
    size = ["data.ways=2", "data.image_size=48", "data.queries=3", "data.test_queries=3", "model.filters=4"]
    split = [f"data.root={root}", "data.split=ratio", "data.ratios=[0.4,0.3,0.3]"]
    metarun.run(metarun.compose(["data=folder", "algo=maml", *TINY, *size, *split]), tmp_path / "run")
    row = stored(tmp_path / "run")["tasks"][0]
    assert row["shape"] == [32, 32, 3]
    assert "embedding" not in row  # a network with a head
    assert (len(row["support"]["pixels"]), len(row["queries"]["pixels"])) == (2, 6)
    assert all(len(base64.b64decode(code)) == 32 * 32 * 3 for code in row["queries"]["pixels"])
    page = (tmp_path / "run/report.html").read_text()
    assert "shown queries wrong" in page  # in the alt text
    assert "could not be made" not in page


def test_other_regressions_have_predicted_and_true_values(tmp_path: Path) -> None:
    config = metarun.compose(["algo=maml", "data.identity=4", *TINY])
    metarun.run(config, tmp_path / "run")
    found = stored(tmp_path / "run")
    assert found["kind"] == "values"
    assert len(found["tasks"][0]["targets"]) == len(found["tasks"][0]["predicted"][0])
    assert "could not be made" not in (tmp_path / "run/report.html").read_text()
