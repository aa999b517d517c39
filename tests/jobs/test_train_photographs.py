"""Every algorithm on photographs, as typed: tiny ones of our own always, the real ones where they are there."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.colours import class_folders

import metarun
from metarun.config import catalogue

REAL = Path(__file__).resolve().parents[3] / "shared/data/photos"
TINY = [
    "train.steps=2",
    "train.tasks=2",
    "val.tasks=2",
    "test.tasks=3",
    "test.steps=1",
    "device.compile=false",
    "device.chunk_size=null",
    "report=false",
]
SMALL = ["data.image_size=16", "data.ways=3", "data.queries=2", "data.test_queries=2", "model.filters=4"]
REPTILE = {"reptile": ["algo.train_shots=3", "algo.inner_batch=9", "algo.test_inner_steps=3"]}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("images"), [f"class{i:02d}" for i in range(15)], each=5)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


SAMPLE = ("mamlpp", "imaml", "reptile", "protonet")
"""One of each kind of adaptation; the others are the long suite's."""


@pytest.mark.parametrize(
    "algo",
    [
        pytest.param(algo, marks=[] if algo in SAMPLE else [pytest.mark.long])
        for algo in catalogue.list_algorithms("classification")
    ],
)
def test_each_algorithm_runs_on_a_folder_of_photographs(images: Path, tmp_path: Path, algo: str) -> None:
    settings = [f"algo={algo}", "data=folder", f"data.root={images}", *TINY, *SMALL, *REPTILE.get(algo, [])]
    result = metarun.run(metarun.compose(settings), tmp_path)
    assert result.status == "completed"
    assert (result.summary["split"], result.summary["images"], result.summary["n_tasks"]) == ("ratio", 75, 3)
    assert "caveat" not in result.summary
    assert 0 <= result.summary["mean"] <= 1


def test_an_augmented_run_is_resumed_to_the_same_weights(images: Path, tmp_path: Path) -> None:
    """Changes to images are a function of seed, step and task, not of what was drawn before."""
    changes = ["data.crop=2", "data.flip=true", "data.jitter=0.3", "data.rotations=task"]
    common = ["algo=protonet", "data=folder", f"data.root={images}", *TINY, *SMALL, "train.eval_every=2", *changes]
    whole = metarun.run(metarun.compose([*common, "train.steps=4"]), tmp_path / "whole")
    metarun.run(metarun.compose(common), tmp_path / "parts")
    config = metarun.compose([*common, "train.steps=4"])
    config.resume = str(tmp_path / "parts")
    resumed = metarun.run(config, tmp_path / "parts")
    plain = metarun.run(metarun.compose([*common[: -len(changes)], "train.steps=4"]), tmp_path / "plain")
    assert resumed.summary["params_sha256"] == whole.summary["params_sha256"] != plain.summary["params_sha256"]
    assert plain.summary["episodes_sha256"] != ""


def test_other_classes_than_the_published_ones_are_said_to_be_so(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        "algo=protonet",
        "data=miniimagenet",
        f"data.root={images}",
        "data.split=ratio",
        "data.ratios=[0.6,0.2,0.2]",
        *TINY,
        *SMALL,
    ]
    result = metarun.run(metarun.compose([*settings, "algo.train_ways=3"]), tmp_path)
    assert "of other classes, results cannot be compared with papers" in result.summary["caveat"]
    assert f"note: {result.summary['caveat']}" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.xdist_group("photographs")  # read once
@pytest.mark.skipif(not REAL.is_dir(), reason=f"the photographs are not in {REAL}")
@pytest.mark.parametrize("algo", ["protonet", "maml"])
def test_real_photographs_in_the_layout_of_miniimagenet_train_by_default(algo: str, tmp_path: Path) -> None:
    small = ["data.image_size=32", "data.queries=2", "data.test_queries=2"]
    config = metarun.compose([f"algo={algo}", "data=miniimagenet", f"data.root={REAL}", *TINY, *small])
    result = metarun.run(config, tmp_path)
    assert (result.summary["split"], result.summary["layout"]) == ("given", "split csvs")
    assert result.summary["classes"] == {"train": 64, "val": 16, "test": 20}
    assert "cannot be compared with papers" in result.summary["caveat"]
