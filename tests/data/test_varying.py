"""Steps that draw the shots of their tasks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

import metarun
from metarun.data.sinusoid import Sinusoid
from metarun.data.varying import VaryingShots
from metarun.types import EpisodeSpec

SINUSOIDS = Sinusoid((0.1, 5.0), (0.0, 3.14), (-5.0, 5.0), 0.0)
SPEC = EpisodeSpec(1, 10, 7)
TINY = ["train.tasks=3", "val.tasks=2", "test.tasks=4", "report=false", "diagnostics=basic", "train.log_every=2"]
TINY += ["train.eval_every=4", "train.checkpoint_every=4", "device.threads=1"]


def test_every_size_is_drawn_equally_often_and_all_tasks_of_a_step_share_it() -> None:
    data = VaryingShots(SINUSOIDS, 1, 10)
    sizes = Counter(data.episodes("train", 0, step, range(2), SPEC).support.x.shape[1] for step in range(2000))
    assert {*sizes} == {*range(1, 11)}
    assert all(abs(count - 200) < 5 * 200**0.5 for count in sizes.values())
    episode = data.episodes("train", 0, 3, range(4), SPEC)
    assert episode.query.x.shape[1] == 7


def test_an_episode_is_that_of_a_fixed_size() -> None:
    data = VaryingShots(SINUSOIDS, 1, 10)
    for step in range(5):
        drawn = data.episodes("train", 1, step, range(3), SPEC)
        fixed = SINUSOIDS.episodes("train", 1, step, range(3), SPEC._replace(shots=drawn.support.x.shape[1]))
        assert torch.equal(drawn.support.x, fixed.support.x)
        assert torch.equal(drawn.query.y, fixed.query.y)
    test = data.episodes("test", 0, 0, range(3), SPEC)
    assert test.support.x.shape[1] == 10


@pytest.mark.parametrize(
    "chosen", [["algo=maml"], ["algo=reptile", "algo.train_shots=null"], ["algo=imaml"], ["algo=cnp"]]
)
def test_a_training_resumes_exactly_and_is_tested_with_any_size(chosen: list[str], tmp_path: Path) -> None:
    settings = [*chosen, *TINY, "data.shots=[2,10]"]
    whole = metarun.run(metarun.compose([*settings, "train.steps=8", "optim.schedule=constant"]), tmp_path / "whole")
    part = metarun.run(metarun.compose([*settings, "train.steps=4", "optim.schedule=constant"]), tmp_path / "part")
    again = metarun.run(metarun.compose([f"resume={part.folder}", "train.steps=8"]))
    assert again.summary["params_sha256"] == whole.summary["params_sha256"]
    assert (whole.summary["shots"], whole.summary["train_shots"]) == (10, "2 to 10")
    tested = metarun.load(part.folder).evaluate("data.shots=3", folder=tmp_path / "tested").summary
    assert (tested["shots"], tested["train_shots"]) == (3, "2 to 10")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["data.shots=[10,2]"], r"data.shots=\[10, 2\]: must be a number, or \[fewest, most\]"),
        (["data.shots=[1,2,3]"], r"data.shots=\[1, 2, 3\]: must be a whole number, or \[fewest, most\]"),
        (["data.shots=[1,2]", "train.pool=5"], r"train.pool=5: must be null where data.shots is a range"),
        (["data.shots=[1,2]", "algo.train_shots=5"], r"algo.train_shots=5: must be null where data.shots is a range"),
        (["data.ways=[5,20]"], r"data.ways=\[5, 20\]: must be a whole number"),
    ],
)
def test_what_cannot_be_is_refused(overrides: list[str], line: str, tmp_path: Path) -> None:
    with pytest.raises(metarun.UserError, match=line):
        metarun.run(metarun.compose([*TINY, *overrides]), tmp_path / "run")
