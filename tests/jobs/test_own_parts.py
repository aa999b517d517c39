"""Every job takes Python objects: a network, a data set, a loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from helpers.analyses import refusal
from torch import Tensor, nn

import metarun
from metarun.jobs.result import Result
from metarun.jobs.train_together import _note_same_start
from metarun.training.experiment import build_dataset
from metarun.training.own_parts import OwnParts, record_objects, select_parts

TINY = ("train.steps=3", "val.tasks=2", "test.tasks=4", "report=false", "device.threads=1", "device.compile=off")


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))


def absolute(prediction: Tensor, y: Tensor) -> Tensor:
    return (prediction - y).abs().mean()


def do(folder: Path, *overrides: str, net: nn.Module | None = None) -> Result:
    return metarun.run(metarun.compose([*TINY, *overrides]), folder, model=net or network(), loss=absolute)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return do(tmp_path_factory.mktemp("own") / "run")


def test_an_analysis_trains_the_given_network_by_the_given_loss(
    trained: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _note_same_start.cache_clear()
    found = do(tmp_path / "seeds", "job=analyze", "analysis=seeds", "analysis.seeds=2").summary
    alone = [trained.summary["mean"], do(tmp_path / "one", "seed=1").summary["mean"]]
    assert found["mean"] == pytest.approx(fmean(alone), rel=1e-12)
    assert "all runs start from the weights of the given module" in capsys.readouterr().err


def test_an_analysis_of_a_run_opens_it_with_the_given_parts(trained: Result, tmp_path: Path) -> None:
    asked = ("job=analyze", "analysis=sensitivity", "analysis.tasks=4", f"run={trained.folder}")
    found = do(tmp_path / "none", *asked).summary
    evaluated = do(tmp_path / "again", "job=evaluate", f"run={trained.folder}", "test.tasks=4").summary
    assert found["tuned"]["value"] == pytest.approx(evaluated["mean"], rel=1e-6)


def test_rows_of_another_network_are_not_read_as_this_ones(tmp_path: Path) -> None:
    asked = ("job=analyze", "analysis=seeds", "analysis.seeds=2")
    first = do(tmp_path / "a", *asked).summary
    assert do(tmp_path / "a", *asked).summary == first
    message = refusal(lambda: do(tmp_path / "a", *asked, net=network(1)))
    assert message.endswith("holds results for other settings; name another folder")


def test_a_setting_that_names_another_part_replaces_the_object() -> None:
    config = metarun.compose([])
    own = OwnParts(network(), build_dataset(config), absolute)
    named = record_objects(config, own)
    assert select_parts(own, named) == own
    assert select_parts(own, replace(named, data=config.data)) == replace(own, dataset=None)
    assert select_parts(own, replace(named, model=config.model)) == replace(own, model=None)


def test_profile_export_and_predict_take_the_given_network(trained: Result, tmp_path: Path) -> None:
    assert do(tmp_path / "profile", "job=profile", "profile.steps=2").summary["algo"] == "maml"
    exported = do(tmp_path / "export", "job=export", f"run={trained.folder}", "export.tasks=4", "export.calls=2")
    stored = json.loads((exported.folder / "config.json").read_text())
    assert stored["figure"]["mean"] == pytest.approx(trained.summary["mean"], rel=1e-5)
    (tmp_path / "known.csv").write_text("x,y\n0,1\n1,2\n")
    (tmp_path / "asked.csv").write_text("x\n0\n1\n")
    files = f"predict.support={tmp_path}/known.csv", f"predict.query={tmp_path}/asked.csv"
    predicted = do(tmp_path / "predict", "job=predict", f"run={trained.folder}", *files).folder / "predictions.csv"
    adapted = metarun.load(trained.folder, model=network(), loss=absolute).adapt([[0.0], [1.0]], [[1.0], [2.0]])
    rows = [line.split(",") for line in predicted.read_text().splitlines()[1:]]
    assert [float(y) for _, y in rows] == pytest.approx(adapted.predict([[0.0], [1.0]]).flatten().tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"model": "resnet"}, "model: str has no `features`; pass a torch.nn.Module, or a metarun.types.Model"),
        ({"model": nn.Linear}, "model: Linear is a class; pass an object, Linear(...)"),
        ({"dataset": "omniglot"}, 'data: str has no `kind`; write kind = "classification", or "regression"'),
        ({"metrics": [absolute]}, "metrics: must be {name: function}, not list"),
        ({"callbacks": absolute}, "callbacks: must be a list of objects, not function"),
        ({"callbacks": [Result]}, "callbacks[0]: Result is a class; pass an object, Result(...)"),
        (
            {"callbacks": [3]},
            "callbacks[0]: int has none of on_step, on_validation, on_end, so it would never be called",
        ),
    ],
)
@pytest.mark.parametrize("job", ["train", "profile"])
def test_a_wrong_object_is_refused(parts: dict[str, Any], message: str, job: str, tmp_path: Path) -> None:
    config = metarun.compose([*TINY, f"job={job}"])
    assert refusal(lambda: metarun.run(config, tmp_path / "run", **parts)) == message
    assert not (tmp_path / "run").exists()
