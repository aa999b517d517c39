"""What a data set of one's own may leave out, and the line that each mistake gets before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import wrong_datasets
from helpers.wrong_datasets import Lines

import metarun
from metarun.data.own import check_own, complete, require_members
from metarun.errors import UserError
from metarun.testing import check_dataset
from metarun.testing.episodes import Blobs
from metarun.types import Batch, EpisodeSpec, Task

SPEC = EpisodeSpec(1, 5, 4)
SIZES = {"train": SPEC, "val": SPEC, "test": EpisodeSpec(1, 5, 7)}
TINY = ["train.steps=3", "train.tasks=2", "train.eval_every=3", "val.tasks=2", "test.tasks=3", "device.compile=off"]


class Short:
    """The two members that are needed, and no more."""

    kind = "regression"
    episodes, key, draw = Lines.episodes, Lines.key, Lines.draw


class ShortBlobs:
    kind = "classification"

    def episodes(self, split: Any, seed: int, step: int, tasks: range, spec: EpisodeSpec) -> Task:
        return Blobs().episodes(split, seed, step, tasks, spec)


def refusal(dataset: Any, sizes: Any = SIZES) -> str:
    def check() -> None:
        require_members(dataset)
        check_own(dataset, sizes)

    with pytest.raises(UserError) as error:
        check()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_two_members_are_enough() -> None:
    made: Any = complete(Short(), SPEC)
    assert (made.input_shape(), made.outputs(1), made.facts()) == ((1,), 1, {"split": "unknown", "split_sha256": None})
    drawn = Short().episodes("train", 0, 0, range(3), SPEC).support.x.reshape(-1, 1)
    assert torch.equal(made.reference_inputs(12), drawn[:12])
    check_dataset(Short(), skip=["sizes"])
    check_dataset(ShortBlobs(), skip=["sizes"])


@pytest.mark.parametrize("dataset", [Short(), ShortBlobs()], ids=lambda d: d.kind)
def test_it_trains_and_its_result_says_that_the_split_is_unknown(dataset: Any, tmp_path: Path) -> None:
    config = metarun.compose(["data=own", "data.ways=3", "data.shots=2", *TINY])
    result = metarun.run(config, tmp_path / "run", dataset=dataset)
    assert (result.status, result.summary["split"], result.summary["n_tasks"]) == ("completed", "unknown", 3)
    assert (tmp_path / "run/report.html").is_file()


def test_facts_of_its_own_are_completed() -> None:
    class Noted(Short):
        def facts(self) -> dict[str, Any]:
            return {"rows": 20}

    assert complete(Noted(), SPEC).facts() == {"split": "unknown", "split_sha256": None, "rows": 20}


class Raises(Lines):
    def draw(self, rng: Any, spec: EpisodeSpec) -> Task:
        raise KeyError("weights")


class Impure(Lines):
    def draw(self, rng: Any, spec: EpisodeSpec) -> Task:
        return super().draw(np.random, spec)


class OtherWidth(Lines):
    def outputs(self, ways: int) -> int:
        return 2


class OtherShape(Lines):
    def input_shape(self) -> tuple[int, ...]:
        return (1, 1)


class NoReferences(Lines):
    def reference_inputs(self, count: int) -> torch.Tensor:
        return torch.zeros(count)


class ListOfFacts(Lines):
    def facts(self) -> Any:
        return ["split", "drawn"]


class FewShots(Lines):
    def draw(self, rng: Any, spec: EpisodeSpec) -> Task:
        return super().draw(rng, spec._replace(shots=spec.shots - 1))


class WideQuery(Lines):
    def draw(self, rng: Any, spec: EpisodeSpec) -> Task:
        task = super().draw(rng, spec)
        return Task(task.support, Batch(task.query.x.repeat(1, 2), task.query.y))


MESSAGES = {
    "NoEpisodes": "data: NoEpisodes has no `episodes`; write def episodes(self, split, seed, step, tasks, spec)",
    "OtherKind": "data: OtherKind.kind=regresion: choices: classification, regression, control",
    "NoTaskAxis": "data: NoTaskAxis.episodes('train', ...) gave support.x of shape [5, 1]; it must be [2, 5, ...]",
    "Arrays": "gave support.x of type ndarray; it must be a torch.Tensor",
    "Doubles": "gave support.y of float64; it must be float32, as y.float() makes it",
    "FlatTargets": "gave support.y of shape [2, 5] and torch.float32; targets are [T, rows, d_out] of float32",
    "Missing": "gave support.x with NaN or infinite numbers",
    "GlobalDraws": "data: GlobalDraws.episodes: the same arguments gave another episode; draw from np.random.default",
    "ByRange": "data: ByRange.episodes: task 1 drawn without task 0 gave another episode",
}
CLASSES = {
    "GlobalLabels": "gave support.y with labels 10 to 12; they must be 0 to 2, given anew in each task",
    "OneHot": "gave support.y of shape [2, 6, 3] and torch.int64; labels are [T, rows] of int64",
    "ShortLabels": "gave support.y of shape [2, 6] and torch.int32; labels are [T, rows] of int64",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_each_mistake_is_named(name: str) -> None:
    assert MESSAGES[name] in refusal(getattr(wrong_datasets, name)())


@pytest.mark.parametrize("name", CLASSES)
def test_each_mistake_of_a_classification_is_named(name: str) -> None:
    spec = EpisodeSpec(3, 2, 2)
    assert CLASSES[name] in refusal(getattr(wrong_datasets, name)(), dict.fromkeys(SIZES, spec))


def test_further_mistakes() -> None:
    where = "data: Raises.episodes('train', ...): KeyError: 'weights' (test_own.py, line "
    assert refusal(Raises()).startswith(where)
    assert "OtherWidth.outputs(1) is 2, but its targets have 1 columns" in refusal(OtherWidth())
    assert "OtherShape.input_shape() is (1, 1), but the rows of its episodes are (1,)" in refusal(OtherShape())
    assert "NoReferences.reference_inputs(3) is [3]; it must be a tensor [3, 1]" in refusal(NoReferences())
    assert "ListOfFacts.facts() must be a dict, such as {'split': 'own'}" in refusal(ListOfFacts())
    assert "gave support.x of shape [2, 4, 1]; it must be [2, 5, ...]" in refusal(FewShots())
    assert "rows of [1] torch.float32 and [2] torch.float32; they must be alike" in refusal(WideQuery())
    assert refusal(Lines) == "data: Lines is a class; pass an object, Lines(...)"


def test_a_mistake_ends_the_run_before_its_first_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the same arguments gave another episode"):
        metarun.run(metarun.compose(["data=own", *TINY]), tmp_path / "run", dataset=Impure())
    assert not (tmp_path / "run/summary.json").exists()


def test_what_metarun_makes_is_not_drawn_again() -> None:
    made = Blobs()
    assert complete(made, SPEC) is made
