"""Every algorithm on the real Omniglot, as typed, for two steps; skipped where the archives are not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import metarun
from metarun.config import catalogue

REAL = Path(__file__).resolve().parents[3] / "shared/data/omniglot"
SAMPLE = ("maml", "imaml", "protonet")
ALGORITHMS = [
    pytest.param(algo, marks=[] if algo in SAMPLE else [pytest.mark.long])
    for algo in catalogue.list_algorithms("classification")
]
TINY = ["train.steps=2", "train.tasks=2", "val.tasks=2", "test.tasks=3", "test.steps=1", "report=false"]

pytestmark = [
    pytest.mark.xdist_group("omniglot"),  # decoded once
    pytest.mark.slow,
    pytest.mark.skipif(not REAL.is_dir(), reason=f"the Omniglot archives are not in {REAL}"),
]


@pytest.fixture(scope="module", autouse=True)
def _decoded_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", str(tmp_path_factory.getbasetemp() / "omniglot"))
        patch.setenv("METARUN_DATA", str(REAL))
        yield


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_each_algorithm_runs_on_omniglot_by_default(algo: str, tmp_path: Path) -> None:
    result = metarun.run(metarun.compose([f"algo={algo}", "data=omniglot", *TINY]), tmp_path)
    assert result.status == "completed"
    summary = result.summary
    assert (summary["split"], summary["ways"], summary["shots"], summary["n_tasks"]) == ("vinyals", 5, 1, 3)
    assert 0 <= summary["mean"] <= 1
    assert (tmp_path / "split.json").exists()


@pytest.mark.parametrize(
    "algo", ["cnp", *(pytest.param(a, marks=pytest.mark.long) for a in ("np", "anp", "cvae", "maml"))]
)
def test_drawings_are_completed_by_default(algo: str, tmp_path: Path) -> None:
    result = metarun.run(metarun.compose([f"algo={algo}", "data=completion", *TINY]), tmp_path)
    assert result.status == "completed"
    summary = result.summary
    assert (summary["split"], summary["shots"], summary["test_queries"]) == ("vinyals", 100, 784)
    assert (tmp_path / "functions.json").exists() is (algo != "maml")


def test_wrong_numbers_of_pixels_are_refused_with_their_key() -> None:
    for wrong, words in (
        ("data.shots=784", r"data\.shots=784: must be 1 to 783"),
        ("data.queries=700", r"data\.queries=700: must be 1 to 684"),
    ):
        with pytest.raises(metarun.UserError, match=words):
            metarun.build_algorithm(metarun.compose(["algo=cnp", "data=completion", wrong]))


def test_a_learner_without_a_head_is_tested_on_other_ways_and_shots(tmp_path: Path) -> None:
    base = ["algo=protonet", "data=omniglot", "algo.train_ways=10", *TINY]
    metarun.run(metarun.compose(base), tmp_path / "trained")
    again = ["job=evaluate", f"run={tmp_path / 'trained'}", "data.ways=20", "data.shots=5"]
    result = metarun.run(metarun.compose([*base, *again]), tmp_path / "evaluated")
    assert (result.summary["ways"], result.summary["shots"]) == (20, 5)


def test_fully_conditional_embeddings_train(tmp_path: Path) -> None:
    config = metarun.compose(["algo=matchingnet", "algo.fce=true", "algo.train_ways=5", "data=omniglot", *TINY])
    assert metarun.run(config, tmp_path).status == "completed"


def test_too_many_ways_are_refused_with_the_number_of_classes() -> None:
    config = metarun.compose(["algo=protonet", "data=omniglot", "data.ways=700"])
    with pytest.raises(metarun.UserError, match=r"data\.ways=700: must be 2 to 688, the classes of the val split"):
        metarun.build_algorithm(config)
