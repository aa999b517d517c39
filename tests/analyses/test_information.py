"""Bounds of mutual information of trained learners."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers.colours import class_folders

import metarun
from metarun.errors import UserError

TINY = ["train.steps=2", "train.tasks=3", "val.tasks=2", "test.tasks=3", "device.compile=false", "report=false"]


def analysed(folder: Path, settings: list[str], *more: str) -> dict[str, Any]:
    metarun.run(metarun.compose([*settings, *TINY]), folder)
    asked = ["job=analyze", f"run={folder}", "analysis=information", "analysis.tasks=20", *more]
    found = metarun.run(metarun.compose([*settings, *TINY, *asked]), folder / "job").folder
    return json.loads((Path(found) / "results.json").read_text())


@pytest.mark.parametrize(
    "algo", ["cnp", "convcnp", *(pytest.param(a, marks=pytest.mark.long) for a in ("tnpd", "anp", "cvae")), "np"]
)
def test_bounds_of_each_learner(algo: str, tmp_path: Path) -> None:
    latent = ["algo.latent=3"] if algo in ("np", "anp", "cvae") else []
    size = "width" if algo in ("convcnp", "tnpd") else "representation"
    settings = [f"algo={algo}", "data=gp", f"algo.{size}=8", "model.hidden=[8,6]", "algo.min_shots=1", *latent]
    found = analysed(tmp_path, settings, "analysis.shots=[2,5]")
    assert [row["shots"] for row in found["rows"]] == [2, 5]
    for row in found["rows"]:
        assert row["most"] == pytest.approx(math.log(10))
        assert row["representation"] <= row["most"]
        assert ("latent_lower" in row) is bool(latent)
        if latent:
            assert row["latent_lower"] <= row["latent_most"] == pytest.approx(math.log(20))
            assert row["latent_given_context"] >= 0
    assert "share at least" in found["summary"]["message"]
    assert {p.name for p in (tmp_path / "analyses" / "information").glob("figure.*")} == {"figure.png", "figure.svg"}


@pytest.mark.long
def test_the_representation_of_labelled_images_is_the_mean_feature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    class_folders(tmp_path / "images", [f"class{i}" for i in range(10)], each=6)
    sizes = ["data.image_size=16", "data.ways=2", "data.shots=2", "data.queries=2", "data.test_queries=2"]
    settings = ["algo=protonet", "model.filters=4", "data=folder", f"data.root={tmp_path / 'images'}", *sizes]
    found = analysed(tmp_path / "run", settings, "analysis.tasks=40")
    assert [row["shots"] for row in found["rows"]] == [1, 2]
    for row in found["rows"]:
        assert -row["most"] < row["representation"] <= row["most"]


def test_a_learner_without_representation_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"algo=maml data=gp: .* no representation.*choose algo=cnp") as refused:
        analysed(tmp_path, ["algo=maml", "data=gp"])
    assert "\n" not in str(refused.value)
