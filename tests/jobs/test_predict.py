"""job=predict: a trained run labels pictures of classes that it has never seen."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.colours import SIDE, class_folders, picture
from torch import nn

import metarun
from metarun.compute.device import make_placement
from metarun.config.schema import Config
from metarun.data.folder import read_examples, read_pictures
from metarun.data.pixels import Pixels
from metarun.errors import UserError
from metarun.jobs.predict import predict as predict_rows
from metarun.jobs.result import Result
from metarun.models.norm import NORMS
from metarun.training.evaluation import calibrate
from metarun.training.experiment import OwnParts, build_dataset, build_learner
from metarun.types import Algorithm, Batch, EpisodeSpec, Params

CLASSES = [f"colour{i:02d}" for i in range(15)]
NEW = ["ochre", "violet", "teal"]
TINY = ["data.image_size=16", "data.ways=3", "data.shots=2", "data.queries=2", "data.test_queries=2"]
SHORT = [
    "train.steps=30",
    "train.tasks=2",
    "train.eval_every=30",
    "val.tasks=5",
    "test.tasks=5",
    "test.steps=1",
    "report=false",
]
PIXELS = Pixels(SIDE, 3, "lanczos")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures to train on, examples and pictures of new classes, and one trained run for each kind of learner."""
    home = tmp_path_factory.mktemp("home")
    class_folders(home / "images", CLASSES, each=5)
    class_folders(home / "support", NEW, each=3)
    class_folders(home / "query", NEW, each=4, start=100)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("METARUN_CACHE", str(home / "cache"))
        for algo in ("protonet", "fomaml"):
            metarun.run(settings(home, algo), home / algo)
    return home


@pytest.fixture(autouse=True)
def _cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(home / "cache"))


def small_module() -> nn.Module:
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 3))
    return nn.Sequential(*layers)


def settings(home: Path, algo: str, *more: str) -> Config:
    changes = [*more, "model.filters=8", "device.compile=false", f"data.root={home / 'images'}"]
    return metarun.compose([f"algo={algo}", "data=folder", *TINY, *SHORT, *changes])


def predict(home: Path, folder: Path, algo: str = "protonet", **changes: str) -> Result:
    config = settings(home, algo)
    config.job, config.run = "predict", str(home / algo)
    config.predict.support = changes.get("support", str(home / "support"))
    config.predict.query = changes.get("query", str(home / "query"))
    return metarun.run(config, folder)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("algo", ["protonet", "fomaml"])
def test_every_picture_gets_a_row_of_probabilities_and_the_likeliest_class(
    home: Path, tmp_path: Path, algo: str
) -> None:
    result = predict(home, tmp_path, algo)
    table = rows(tmp_path)
    assert [row["file"] for row in table] == [f"{name}/{i}.png" for name in sorted(NEW) for i in range(100, 104)]
    for row in table:
        chances = {name: float(row[f"p({name})"]) for name in NEW}
        assert sum(chances.values()) == pytest.approx(1, abs=2e-4)
        assert row["predicted"] == max(chances, key=chances.__getitem__)
        assert float(row["probability"]) == max(chances.values())
    assert result.summary["labelled"] == 12
    assert result.summary["correct"] == sum(row["file"].startswith(row["predicted"]) for row in table)
    assert json.loads((tmp_path / "summary.json").read_text())["classes"] == sorted(NEW)


def test_colours_are_distinguished_though_the_run_never_saw_them(home: Path, tmp_path: Path) -> None:
    assert predict(home, tmp_path).summary["correct"] == 12


def test_one_image_may_be_asked_for(home: Path, tmp_path: Path) -> None:
    picture("teal", 7).save(tmp_path / "mine.png")
    predict(home, tmp_path / "out", query=str(tmp_path / "mine.png"))
    (row,) = rows(tmp_path / "out")
    assert (row["file"], row["predicted"]) == ("mine.png", "teal")


def test_the_examples_may_lie_in_an_archive(home: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "support"), "zip", home / "support")
    predict(home, tmp_path / "a", support=archive)
    predict(home, tmp_path / "b")
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_more_pictures_than_are_predicted_at_once_are_predicted_alike(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """True of fixed statistics, which a prototypical network has."""
    predict(home, tmp_path / "all")
    monkeypatch.setattr("metarun.jobs.predict.AT_ONCE", 5)
    predict(home, tmp_path / "parts")
    assert rows(tmp_path / "all") == rows(tmp_path / "parts")


def company(learner: Algorithm, params: Params, support: Batch, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The predictions of all rows at once, and of each alone."""
    together = predict_rows(learner, params, support, x)
    return together, torch.cat([predict_rows(learner, params, support, row[None]) for row in x])


@pytest.mark.parametrize("algo", ["maml", "anil", "protonet", "matchingnet"])
@pytest.mark.parametrize("norm", [*NORMS, "own module"])
def test_a_picture_gets_the_same_prediction_in_any_company(home: Path, algo: str, norm: str) -> None:
    """For every normalisation, and for a module of one's own with batch normalisation."""
    config = settings(home, algo, f"model.norm={'batch' if norm == 'own module' else norm}")
    dataset = build_dataset(config)
    own = OwnParts(model=small_module()) if norm == "own module" else OwnParts()
    learner = build_learner(config, dataset, 3, own)
    params = learner.init(0)
    learner = calibrate(learner, params, dataset, make_placement(config.device))
    task = dataset.episodes("train", 0, 0, range(1), EpisodeSpec(3, 2, 2))
    support, x = Batch(task.support.x[0], task.support.y[0]), task.query.x[0]
    together, alone = company(learner, params, support, x)
    assert together.shape == (6, 3)
    assert together.std(0).min() > 1e-4  # they do depend on the picture
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        together.flip(0), predict_rows(learner, params, support, x.flip(0)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("algo", ["maml", "protonet"])
def test_batch_statistics_are_those_of_the_examples_and_the_picture(home: Path, algo: str) -> None:
    config = settings(home, algo, "model.norm=batch")
    dataset = build_dataset(config)
    batch = build_learner(config, dataset, 3)
    joined = build_learner(settings(home, algo, "model.norm=joined"), dataset, 3)
    task = dataset.episodes("train", 0, 0, range(1), EpisodeSpec(3, 2, 2))
    support, x, params = Batch(task.support.x[0], task.support.y[0]), task.query.x[0], batch.init(0)
    found, expected = (predict_rows(learner, params, support, x) for learner in (batch, joined))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_loaded_run_predicts_alike_in_any_company(home: Path) -> None:
    run = metarun.load(home / "fomaml")
    support = read_examples(home / "support", Pixels(16, 3, "lanczos"))
    x = read_pictures(home / "query", Pixels(16, 3, "lanczos")).x
    adapted = run.adapt(support.x, support.y)
    alone = [adapted.probabilities(row[None])[0] for row in x]
    torch.testing.assert_close(adapted.probabilities(x), np.stack(alone), rtol=1e-4, atol=1e-5)


def test_the_job_labels_one_picture_as_among_others(home: Path, tmp_path: Path) -> None:
    predict(home, tmp_path / "all", "fomaml")
    predict(home, tmp_path / "one", "fomaml", query=str(home / "query/teal/102.png"))
    (one,) = rows(tmp_path / "one")
    (same,) = [row for row in rows(tmp_path / "all") if row["file"] == "teal/102.png"]
    assert one["predicted"] == same["predicted"]
    for key in same:
        if key.startswith("p"):
            assert one[key] == same[key] or float(one[key]) == pytest.approx(float(same[key]), abs=2e-4)


def test_the_terminal_shows_a_table_and_what_it_depends_on(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(home, tmp_path, "fomaml")
    shown = capsys.readouterr().out
    assert "3 classes with 3 examples each" in shown
    assert "ochre/100.png" in shown
    assert "normalised together with the examples and without the other pictures" in shown
    assert str(tmp_path / "predictions.csv") in shown


def test_examples_come_shot_by_shot_and_may_be_unequal(home: Path, tmp_path: Path) -> None:
    """Mini-batches of consecutive rows stay balanced as long as every class has examples."""
    class_folders(tmp_path, ["a"], each=3)
    class_folders(tmp_path, ["b"], each=1)
    examples = read_examples(tmp_path, PIXELS)
    assert examples.classes == ("a", "b")
    assert examples.y.tolist() == [0, 1, 0, 0]
    assert examples.shots == (1, 3)
    expected = torch.tensor(PIXELS.decode((tmp_path / "b/000.png").read_bytes())) / 255
    torch.testing.assert_close(examples.x[1], expected, rtol=0, atol=1e-7)


def refusal(home: Path, tmp_path: Path, **changes: str) -> str:
    with pytest.raises(UserError) as caught:
        predict(home, tmp_path / "out", **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_another_number_of_classes_needs_a_learner_without_a_head(home: Path, tmp_path: Path) -> None:
    class_folders(tmp_path / "support", ["red", "blue"], each=2)
    support = str(tmp_path / "support")
    message = refusal(home, tmp_path, algo="fomaml", support=support)
    assert message.startswith(
        f"predict.support={support}: the support set has 2 classes, and the network of this run ends in 3 outputs"
    )
    assert len(rows(predict(home, tmp_path / "out", support=support).folder)) == 12


def test_wrong_places_are_one_line_with_their_key(home: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.jpg").write_text("no image")
    assert refusal(home, tmp_path, support="/no/where") == "predict.support=/no/where: there is no such file or folder"
    assert "a folder of images for each" in refusal(home, tmp_path, support=str(tmp_path / "empty"))
    assert refusal(home, tmp_path, query="") == (
        "predict.query=None: job=predict needs the examples to adapt to (support), and what to predict (query): "
        "folders of pictures, or tables for a run on rows"
    )
    assert "contains no image" in refusal(home, tmp_path, query=str(tmp_path / "empty"))
    assert f"{tmp_path / 'bad/x.jpg'}: is not a readable image" in refusal(home, tmp_path, query=str(tmp_path / "bad"))


def test_pictures_that_cannot_be_read_are_named_and_the_others_predicted(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "query", tmp_path / "query")
    predict(home, tmp_path / "whole", query=str(tmp_path / "query"))
    for name in ("teal/0.png", "broken.jpg"):
        (tmp_path / "query" / name).write_text("no image")
    capsys.readouterr()
    result = predict(home, tmp_path / "out", query=str(tmp_path / "query"))
    assert rows(tmp_path / "out")[:-2] == rows(tmp_path / "whole")
    last = rows(tmp_path / "out")[-2:]
    assert {(row["file"], row["predicted"], row["probability"]) for row in last} == {
        ("broken.jpg", "(not readable)", ""),
        ("teal/0.png", "(not readable)", ""),
    }
    assert (result.summary["pictures"], sorted(result.summary["unreadable"])) == (12, ["broken.jpg", "teal/0.png"])
    shown = capsys.readouterr().out
    assert "broken.jpg" in shown
    assert shown.rstrip().endswith("predictions.csv (2 files skipped: not readable as images)")


def test_a_refused_job_of_the_command_line_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra makes the folder before the job can be refused."""
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "metarun", "job=predict", "run=nowhere"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert not list(tmp_path.iterdir())


def test_a_run_is_needed_and_one_on_images(home: Path, tmp_path: Path) -> None:
    config = metarun.compose(["job=predict", "data=point_robot"])
    with pytest.raises(UserError, match=r"run=None: job=predict needs a run's folder"):
        metarun.run(config, tmp_path)
    config.run = "outputs/somewhere"
    with pytest.raises(UserError, match=r"trained on data=point_robot, which has neither images nor a table"):
        metarun.run(config, tmp_path)
