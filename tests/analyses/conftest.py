"""Runs that the tests of a file share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.analyses import IMAGES, POINTS, Run, train
from helpers.colours import class_folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs and the cache of images, for the tests of this file together."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("analyses")
        patch.setenv("METARUN_CACHE", str(path / "cache"))
        patch.delenv("METARUN_DATA", raising=False)
        yield path


@pytest.fixture(scope="module")
def points(folder: Path) -> Run:
    return train(folder / "points", "algo=maml", "algo.test_inner_steps=3", *POINTS)


@pytest.fixture(scope="module")
def photographs(folder: Path) -> list[str]:
    """Settings of tiny photographs of twelve classes: in a csv they are called KIND/NUMBER."""
    labels = [f"{kind}/{i}" for kind in ("bird", "fish", "tool") for i in range(4)]
    root = class_folders(folder / "photos", [label.replace("/", "_") for label in labels], each=6)
    lines = [f"{label.replace('/', '_')}/{i:03d}.png,{label}" for label in labels for i in range(6)]
    (root / "data.csv").write_text("\n".join(["filename,label", *lines]))
    return [*IMAGES, f"data.root={root}", "data.csv=data.csv", "data.ratios=[0.25,0.25,0.5]"]


@pytest.fixture(scope="module")
def protonet(folder: Path, photographs: list[str]) -> Run:
    return train(folder / "protonet", "algo=protonet", *photographs)
