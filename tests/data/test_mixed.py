"""Training tasks from several sets of images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.alphabets import alphabets, drawn_classes
from helpers.analyses import QUICK, refusal
from helpers.colours import class_folders
from PIL import Image

import metarun
from metarun.algorithms.classifier import WEIGHT
from metarun.cli.compose import compose_options
from metarun.config.data_sets import complete_sets
from metarun.data.images import ImageData
from metarun.data.mixed import MixedData, _share
from metarun.data.pixels import Pixels
from metarun.data.shifts import with_test_classes
from metarun.jobs.train import train_job
from metarun.report.statistics.intervals import t_interval
from metarun.report.statistics.student import t_quantile
from metarun.storage.run_folder import RunFolder
from metarun.testing import check_dataset
from metarun.training.evaluation import Evaluation, mean_and_interval
from metarun.training.final_test import check_disjoint
from metarun.types import EpisodeSpec

SPEC = EpisodeSpec(ways=3, shots=1, queries=2)


def mixture(shares: tuple[float, ...] = (0.5, 0.5)) -> MixedData:
    """Two sets of the same images, which are told apart by the draws alone."""
    made = {name: alphabets() for name, _ in zip("abc", shares, strict=False)}
    return MixedData(made, shares, next(iter(made.values())).pixels)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a training on two folders of images, of three and of one channel's worth of colours."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    roots = [class_folders(tmp_path / name, [f"{name}{i}" for i in range(9)], each=5) for name in ("one", "two")]
    sets = ", ".join(f"{r.name}: {{data: folder, root: {r}, ratios: [0.4, 0.3, 0.3]}}" for r in roots)
    size = ["data.image_size=16", "data.ways=2", "data.queries=2", "data.test_queries=2", "model.filters=4"]
    return ["algo=protonet", "data=mixed", f"data.sets={{{sets}}}", *size, *QUICK]


def test_a_mixture_does_what_training_and_a_resumed_run_count_on() -> None:
    check_dataset(mixture(), SPEC)
    check_dataset(mixture((0.9, 0.05, 0.05)), SPEC)


def test_each_task_is_one_of_its_set_and_depends_on_its_index_alone() -> None:
    data = mixture()
    names = data.task_sets("train", 3, 7, range(40))
    drawn = data.episodes("train", 3, 7, range(40), SPEC)
    for index in (0, 1, 17, 39):
        m, k = "ab".index(names[index]), names[:index].count(names[index])
        own = data.sets[names[index]].episodes("train", 3, 7 + m * 2**43, range(k, k + 1), SPEC)
        alone = data.episodes("train", 3, 7, range(index, index + 1), SPEC)
        for part in (0, 1):
            for name in ("x", "y"):
                found = getattr(drawn[part], name)[index]
                assert torch.equal(found, getattr(own[part], name)[0])
                assert torch.equal(found, getattr(alone[part], name)[0])
    a, b = (names.index(name) for name in "ab")  # the first task of each set, of the same images
    assert not torch.equal(drawn.support.x[a], drawn.support.x[b])


def test_sets_are_drawn_by_their_weights_and_in_turn_where_they_are_tested() -> None:
    data = mixture(_share({"c": 1, "a": 6, "b": 3}, ["a", "b", "c"]))
    names = [name for step in range(50) for name in data.task_sets("train", 0, step, range(40))]
    shares = np.array([names.count(name) for name in "abc"]) / len(names)
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=4 * (0.25 / len(names)) ** 0.5)
    assert data.task_sets("val", 0, 0, range(4, 10)) == [*"bcabca"]
    # Those of a set alone, so that results on it can be compared.
    tested = data.episodes("test", 0, 0, range(9), SPEC)
    own = data.sets["b"].episodes("test", 0, 0, range(3), SPEC)
    assert torch.equal(tested.query.x[1::3], own.query.x)


def test_the_metric_is_the_mean_over_sets_with_the_interval_of_stratified_tasks() -> None:
    values = torch.tensor([0.0, 1.0, 0.4, 0.8, 0.5, 0.6, 0.1], dtype=torch.float64)
    sets = ("a", "b", "a", "b", "a", "b", "a")
    found = Evaluation((0,), values[None], values[None], 0, True, "", sets=sets)
    parts = [mean_and_interval(values[0::2]), mean_and_interval(values[1::2])]
    assert found.mean == pytest.approx((parts[0][0] + parts[1][0]) / 2)
    assert found.ci95 == pytest.approx((parts[0][1] ** 2 + parts[1][1] ** 2) ** 0.5 / 2)
    assert found.curve()[0]["mean"] == found.mean
    assert found._replace(sets=()).mean == pytest.approx(float(values.mean()))


def test_a_run_on_a_mixture_records_each_set_and_resumes_to_the_same_bits(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = [*settings, "train.steps=4", "test.tasks=7", "train.eval_every=2", "report=true"]
    whole = metarun.run(metarun.compose(longer), tmp_path / "w")
    summary = whole.summary
    assert {name: part["n_tasks"] for name, part in summary["by_set"].items()} == {"one": 4, "two": 3}
    assert summary["mean"] == pytest.approx(np.mean([part["mean"] for part in summary["by_set"].values()]))
    record = next(r for r in RunFolder(tmp_path / "w").read_records() if r["kind"] == "val")
    assert record["mean"] == pytest.approx((record["mean/one"] + record["mean/two"]) / 2)
    test = json.loads((tmp_path / "w" / "test.json").read_text())
    assert test["sets"] == ["one", "two", "one", "two", "one", "two", "one"]
    assert "On each data set" in (tmp_path / "w" / "report.html").read_text()
    assert "mean of the sets" in capsys.readouterr().out

    part = [*settings, "test.tasks=7", "train.eval_every=2", "train.checkpoint_every=1"]
    metarun.run(metarun.compose([*part, "train.steps=2"]), tmp_path / "p")
    config = metarun.compose([f"resume={tmp_path / 'p'}", "train.steps=4"])
    resumed = train_job(config, RunFolder(tmp_path / "p")).summary
    for key in ("params_sha256", "episodes_sha256", "mean"):
        assert resumed[key] == summary[key]


def test_settings_of_the_sets_are_complete_in_the_run_and_those_of_inputs_are_of_the_mixture(
    settings: list[str], tmp_path: Path
) -> None:
    config = metarun.compose(settings)
    one = config.data["sets"]["one"]
    assert (one["data"], one["image_size"], one["channels"], one["flip"]) == ("folder", None, None, False)
    assert one["root"] == str(tmp_path / "one")
    assert "ways" not in one
    again = complete_sets("data", config.data["sets"], lambda option: compose_options([f"data={option}"]).data)
    assert again == config.data["sets"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            ["data=[omniglot,cub]"],
            "data=[omniglot,cub]: data takes one option; data=mixed 'data.sets={omniglot: PATH, cub:",
        ),
        (["data=mixed", "data.sets.cub=/a"], "data.sets.cub: the sets are set together, as 'data.sets={NAME: PATH, "),
        (["data=mixed"], "data.sets=None: must be {NAME: PATH, ...}"),
        (["data=mixed", "data.sets={}"], "data.sets={}: must be {NAME: PATH, ...}"),
        (
            ["data=mixed", "data.sets={cub: {image_size: 32}}"],
            "data.sets.cub.image_size=32: cannot be set; all sets have data.",
        ),
        (["data=mixed", "data.sets={sinusoid: null}"], "data.sets.sinusoid=sinusoid: has no images that can be mixed"),
        (
            ["data=mixed", "data.sets={cub: /a}", "data.weights={cup: 1}"],
            "data.weights=cup: no such set, did you mean cub?",
        ),
        (
            ["data=mixed", "data.sets={cub: /a, fc100: /b}", "data.weights={cub: 1}"],
            "data.weights={'cub': 1.0}: must have a",
        ),
        (["data=mixed", "data.sets={cub: /no/such}"], "data.sets.cub: data.root=/no/such: there is no such folder"),
    ],
)
def test_wrong_mixtures_are_refused_in_one_line(wrong: list[str], message: str, tmp_path: Path) -> None:
    found = refusal(lambda: metarun.run(metarun.compose(["algo=protonet", *wrong]), tmp_path / "run"))
    assert found.startswith(message)


def test_the_set_that_is_too_small_is_named(settings: list[str], tmp_path: Path) -> None:
    wrong = refusal(lambda: metarun.run(metarun.compose([*settings, "data.ways=5"]), tmp_path / "x"))
    assert wrong.startswith("data.ways=5: must be 2 to 2, the classes of the val split: the 9 classes are divided into")
    assert wrong.endswith("(set one)")


def with_classes(classes: int) -> ImageData:
    """Letters with so many test classes."""
    data = alphabets()
    return with_test_classes(data, data.source.splits["test"][:classes])


def test_disjoint_tasks_use_up_the_classes_of_each_set_and_then_the_others_go_on() -> None:
    """Ten and five classes make five and two tasks of two; those of a set are the disjoint tasks that it has alone."""
    sets = {"a": with_classes(10), "b": with_classes(5)}
    data, most = MixedData(sets, (0.5, 0.5), sets["a"].pixels).disjoint(2)
    spec, tasks = EpisodeSpec(ways=2, shots=1, queries=2), range(7)
    assert (most, data.task_sets("test", 0, 0, tasks)) == (7, [*"ababaaa"])
    classes = [label for labels in data.class_names("test", 0, 0, tasks, spec) for label in labels]
    assert len({*classes}) == len(classes) == 14
    assert data.task_sets("val", 0, 0, range(6)) == [*"ababab"]
    drawn = data.episodes("test", 0, 0, tasks, spec)
    own = sets["b"].disjoint(2)[0].episodes("test", 0, 0, range(2), spec)
    assert torch.equal(drawn.query.x[[1, 3]], own.query.x)
    for index in tasks:
        alone = data.episodes("test", 0, 0, range(index, index + 1), spec)
        assert torch.equal(alone.support.x[0], drawn.support.x[index])


def test_features_are_tested_on_the_disjoint_tasks_of_their_images() -> None:
    images = with_classes(10)
    features = replace(images, original=images)
    for data in (
        features,
        MixedData({"a": features}, (1.0,), images.pixels, MixedData({"a": images}, (1.0,), images.pixels)),
    ):
        found = data.disjoint(2)[0]
        which = "test", 0, 0, range(5), EpisodeSpec(ways=2, shots=1, queries=2)
        assert found.class_names(*which) == found.original.class_names(*which)


def test_an_interval_over_few_tasks_of_each_set_has_the_quantile_of_welch() -> None:
    """Three and twenty tasks with deviations 3 and 1, 3000 times: the interval holds the mean of the two sets in 95 %,
    with 1.96 in far fewer."""
    draw, held = np.random.default_rng(0), {True: 0, False: 0}
    sets = ("a",) * 3 + ("b",) * 20
    for values in draw.normal(size=(3000, 23)) * np.repeat([3.0, 1.0], [3, 20]):
        scores = torch.from_numpy(values)
        for student in held:
            found = Evaluation((0,), scores[None], scores[None], 0, True, "", sets=sets, student=student)
            held[student] += abs(found.mean) <= found.ci95
    assert held[True] / 3000 == pytest.approx(0.95, abs=0.015)
    assert held[False] / 3000 < 0.88


def test_a_disjoint_test_of_a_mixture_has_the_open_interval_of_each_set(settings: list[str], tmp_path: Path) -> None:
    """Seven and ten test classes make three and five tasks of two. The pictures are noise, so that scores differ."""
    roots = [class_folders(tmp_path / name, [f"{name}{i}" for i in range(n)], 5) for name, n in (("x", 15), ("y", 20))]
    draw = np.random.default_rng(0)
    for path in sorted(path for root in roots for path in root.glob("*/*.png")):
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    sets = ", ".join(f"{r.name}: {{data: folder, root: {r}, ratios: [0.3, 0.2, 0.5]}}" for r in roots)
    more = [f"data.sets={{{sets}}}", "test.classes=disjoint", "test.tasks=100"]
    others = [setting for setting in settings if not setting.startswith("data.sets=")]
    summary = metarun.run(metarun.compose([*others, *more]), tmp_path / "run").summary
    found = {name: part["n_tasks"] for name, part in summary["by_set"].items()}
    scores = np.array(json.loads((tmp_path / "run" / "test.json").read_text())["scores"][0])
    assert (found, summary["interval"]) == ({"x": 3, "y": 5}, "open")
    parts = [scores[[0, 2, 4]], scores[[1, 3, 5, 6, 7]]]
    expected = [t_interval(part) for part in parts]
    assert [part["ci95"] for part in summary["by_set"].values()] == pytest.approx([half for _, half in expected])
    v = [part.var(ddof=1) / len(part) for part in parts]
    df = sum(v) ** 2 / (v[0] ** 2 / 2 + v[1] ** 2 / 4)
    assert summary["ci95"] == pytest.approx(t_quantile(0.975, df) * sum(v) ** 0.5 / 2)


def test_a_set_with_too_few_classes_for_disjoint_tasks_is_named(settings: list[str], tmp_path: Path) -> None:
    config = metarun.compose([*settings, "test.classes=disjoint"])
    message = "test.classes=disjoint: leaves 1 test tasks of 2 ways of set one; choices: drawn"
    assert refusal(lambda: metarun.run(config, tmp_path / "run")) == message


def test_disjoint_tasks_are_two_of_each_set_or_more() -> None:
    data = MixedData({"a": with_classes(10), "b": with_classes(5)}, (0.5, 0.5), with_classes(5).pixels)
    check_disjoint(4, *data.disjoint(2))
    wrong = refusal(lambda: check_disjoint(3, *data.disjoint(2)))
    assert wrong == "test.tasks=3: must be at least 4 with test.classes=disjoint, 2 for each data set"


def test_numbered_classes_of_a_set_follow_those_of_the_sets_before_it() -> None:
    """Seven training classes each, of the same images: a class of the second set has the number of the first plus 7."""
    data, classes = mixture().numbered()
    drawn, sets = data.episodes("train", 0, 0, range(20), SPEC), data.task_sets("train", 0, 0, range(20))
    assert classes == 14
    pictured = drawn_classes(drawn)  # the number of each class, which the images show
    first = torch.tensor([7 * (name == "b") for name in sets])[:, None]
    assert torch.equal(torch.cat([batch.y for batch in drawn], 1), pictured + first)
    assert {*sets} == {"a", "b"}
    assert torch.equal(data.episodes("train", 0, 0, range(3, 5), SPEC).query.y, drawn.query.y[3:5])
    assert data.episodes("test", 0, 0, range(4), SPEC).query.y.max() == 2


def test_a_classifier_of_all_classes_trains_on_a_mixture(settings: list[str], tmp_path: Path) -> None:
    result = metarun.run(metarun.compose(["algo=simpleshot", *settings[1:]]), tmp_path / "run")
    assert result.summary["by_set"].keys() == {"one", "two"}
    assert result.params[WEIGHT].shape[0] == 2 * 4  # two sets with 40 % of nine classes


def test_a_mixture_has_one_size_of_images(tmp_path: Path) -> None:
    pixels: Any = mixture().pixels
    assert isinstance(pixels, Pixels)
    assert mixture().reference_inputs(5).shape == (5, *pixels.shape)
