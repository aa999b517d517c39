"""The weights of a run on test tasks unlike those of training."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.alphabets import ALPHABETS, alphabets
from helpers.analyses import IMAGES, Run, analyse, refusal, train
from helpers.colours import class_folders

import metarun
from metarun.analyses.task_shift import Impossible, _change_classes, apply_shift, select_groups
from metarun.data.mixed import MixedData
from metarun.training.experiment import assemble


def test_a_sinusoid_run_is_tested_under_shifts_of_its_tasks(points: Run) -> None:
    summary, rows, _ = analyse(points, "task_shift", "analysis.tasks=6")
    own = json.loads((points[1] / "summary.json").read_text())
    assert rows[0]["shift"] == "none"
    assert rows[0]["mean"] == pytest.approx(own["mean"], rel=1e-12)  # the run's own test
    by_name = {r["shift"]: r for r in rows}
    assert "shots_5" not in by_name  # it is the run's own
    wide = by_name["amplitude_5_to_10"]
    assert wide["difference"] == pytest.approx(wide["mean"] - rows[0]["mean"])
    own_scores = np.array(rows[0]["scores"])
    paired = (np.array(wide["scores"]) - own_scores).var(ddof=1)
    assert wide["half_difference"] == pytest.approx(1.96 * (paired / 6) ** 0.5)
    other = by_name["shots_20"]
    apart = np.var(other["scores"], ddof=1) + own_scores.var(ddof=1)
    assert other["half_difference"] == pytest.approx(1.96 * (apart / 6) ** 0.5)
    assert (wide["paired"], other["paired"]) == (True, False)
    assert summary["worst"] in by_name
    assert wide["before"] > rows[0]["before"]


def test_a_learner_without_a_head_is_tested_with_other_ways_and_image_changes(protonet: Run) -> None:
    more = ["+analysis.classification.three={ways:3}", "+analysis.classification.both={rotate:9,ways:3}"]
    _, rows, folder = analyse(protonet, "task_shift", "analysis.tasks=3", *more)
    by_name = {r["shift"]: r for r in rows}
    assert by_name["three"]["chance"] == pytest.approx(1 / 3)
    assert by_name["both"]["mean"] is not None
    reason = by_name["ways_20"]["left_out"]
    assert reason.startswith("ways=20: must be 2 to 6, the classes of the test split")
    assert reason.endswith("data.split=all tests a trained run on all 12 classes")
    assert "shots_1" not in by_name  # it is the run's own
    assert (by_name["rotated_30"]["paired"], by_name["within_groups"]["paired"]) == (True, False)
    assert 0 <= by_name["within_groups"]["mean"] <= 1
    assert "before" not in by_name["none"]
    assert folder.name == "task_shift"


def test_a_network_with_a_head_keeps_its_ways_and_the_row_has_the_reason(
    folder: Path, photographs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(folder / "head", "algo=maml", "algo.test_inner_steps=1", *photographs)
    _, rows, _ = analyse(run, "task_shift", "analysis.tasks=2")
    by_name = {r["shift"]: r for r in rows}
    assert by_name["ways_20"] == {
        "shift": "ways_20",
        "left_out": "the network has one output per class, so it keeps to 2 ways",
    }
    assert "ways_20 (the network" in capsys.readouterr().out
    assert by_name["blurred"]["mean"] is not None


def test_classes_without_groups_and_pools_of_tasks_leave_rows_out_with_the_reason(folder: Path) -> None:
    root = class_folders(folder / "plain", [f"class{i}" for i in range(9)], each=5)
    run = train(folder / "pool", "algo=protonet", *IMAGES, f"data.root={root}", "train.pool=4")
    _, rows, _ = analyse(run, "task_shift", "analysis.tasks=2")
    by_name = {r["shift"]: r for r in rows}
    assert "tell no groups" in by_name["within_groups"]["left_out"]
    assert "training saw the tasks of its pool" in by_name["training_classes"]["left_out"]
    assert by_name["validation_classes"]["mean"] is not None


@pytest.mark.parametrize(
    "change", [{"classes": "within_groups"}, {"classes": "val"}, {"rotate": 30, "classes": "train"}]
)
def test_a_mixture_is_shifted_set_by_set_and_a_range_of_shots_as_its_images(
    photographs: list[str], change: dict[str, Any]
) -> None:
    """The tasks of each set are those of the set alone under the shift."""
    own = dict(s.split("=", 1) for s in photographs)
    entry = f"{{data: folder, root: {own['data.root']}, csv: data.csv, ratios: {own['data.ratios']}}}"
    shared = [f"{k}={v}" for k, v in own.items() if k not in ("data", "data.root", "data.csv", "data.ratios")]
    mixed = ["data=mixed", f"data.sets={{one: {entry}, two: {entry}}}", *shared]

    def draw(settings: list[str], tasks: int) -> Any:
        experiment = assemble(metarun.compose(["algo=protonet", *settings]))
        shift = apply_shift(experiment, change, "mine").experiment
        return shift.dataset.episodes("test", 0, 0, range(tasks), experiment.test_spec).query.x

    alone, together = draw(photographs, 3), draw(mixed, 6)
    assert torch.equal(together[0::2], alone)
    assert torch.equal(together[1::2], alone)
    assert torch.equal(draw([*photographs, "data.shots=[1,2]"], 3), draw([*photographs, "data.shots=2"], 3))


def test_the_set_whose_classes_have_no_groups_is_named() -> None:
    data = alphabets()
    bare = data.source._replace(table=data.source.table._replace(names=tuple(map(str, range(20)))))
    sets = {"a": data, "b": dataclasses.replace(data, load=lambda verify: bare)}
    with pytest.raises(Impossible, match="b: the names of the classes tell no groups"):
        _change_classes(MixedData(sets, (0.5, 0.5), data.pixels), "within_groups", pooled=False)


@pytest.mark.parametrize(("classes", "groups"), [("new_groups", {"new/D", "new/E"}), ("seen_groups", {"old/B"})])
def test_test_classes_are_selected_by_whether_training_had_of_their_group(classes: str, groups: set[str]) -> None:
    data = alphabets()
    found = select_groups(data, classes)
    assert {data.source.table.names[i].rpartition("/")[0] for i in found} == groups
    assert len(found) == sum(ALPHABETS["test"][g] for g in groups)


def test_shifts_that_no_run_could_have_are_refused_in_one_line(points: Run) -> None:
    experiment = assemble(metarun.compose(points[0]))

    def message(changes: dict[str, Any]) -> str:
        return refusal(lambda: apply_shift(experiment, changes, "mine"))

    assert message({"amplitud": [1, 2]}) == "mine.amplitud: no such shift of these data, did you mean amplitude?"
    assert message({"amplitude": [2, 1]}).startswith("data.amplitude=[2.0, 1.0]: must be [low, high]")
    assert message({"shots": 0}) == "mine.shots=0: must be a whole number of at least 1"
    assert message({"rotate": 15}).startswith("mine.rotate: no such shift of these data, choices: amplitude")
    assert message({"classes": "train"}).startswith("mine.classes: no such shift of these data")
    settings = {name: f"+analysis.{name}.mine={{amplitud:[1,2]}}" for name in ("regression", "by_data.sinusoid")}
    for name, setting in settings.items():
        whole = refusal(partial(analyse, points, "task_shift", setting))
        assert whole.startswith(f"analysis.{name}.mine.amplitud: no such shift")


def test_wrong_changes_of_images_are_refused_in_one_line(protonet: Run) -> None:
    experiment = assemble(metarun.compose(protonet[0]))

    def message(changes: dict[str, Any]) -> str:
        return refusal(lambda: apply_shift(experiment, changes, "mine"))

    assert message({"blur": -1}) == "mine.blur=-1.0: must be at least 0 and finite"
    assert message({"rotate": "left"}) == "mine.rotate=left: must be a number"
    assert message({"classes": "dogs"}).startswith("mine.classes=dogs: choices: train, val, within_groups")
    assert "no inner loop" in refusal(lambda: analyse(protonet, "sensitivity"))


def test_data_without_images_have_the_shifts_of_size_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label = np.repeat(np.arange(30), 12)
    file = folder / "points.npz"
    np.savez(file, x=np.random.default_rng(0).normal(size=(360, 3)) + label[:, None], label=label)
    run = train(folder / "arrays", "algo=protonet", "data=arrays", f"data.file={file}", "data.ways=2", "data.queries=2")
    _, rows, _ = analyse(run, "task_shift", "analysis.tasks=3")
    assert [r["shift"] for r in rows if "left_out" not in r] == ["none", "shots_1"]
    assert "left out: training_classes, validation_classes" in capsys.readouterr().out
