"""Rows by class or by task: what an episode holds, whose rows, and how they are scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metarun.compute.random import random_bits, sample
from metarun.data import from_arrays, from_tasks
from metarun.data.rows import RowData
from metarun.errors import SettingError, UserError
from metarun.testing import check_dataset
from metarun.types import EpisodeSpec, Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def classes(count: int = 12, rows: int = 9, **settings: Any) -> RowData:
    """Row i of class c is [c, i], so that an episode shows where its rows are from."""
    x = np.array([[c, i] for i in range(rows) for c in range(count)])
    return from_arrays(x, label=x[:, 0], scale="none", **settings)


def tasks(count: int = 20, rows: int = 9, **settings: Any) -> RowData:
    x = np.array([[t, i] for i in range(rows) for t in range(count)])
    return from_arrays(x, y=x @ [[100.0], [1.0]], task=x[:, 0], scale="none", **settings)


def test_metarun_can_count_on_them() -> None:
    check_dataset(classes(15), EpisodeSpec(3, 2, 2))
    check_dataset(tasks(), EpisodeSpec(1, 5, 4))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 5), st.integers(0, 1000), st.integers(2, 3), st.integers(1, 5), st.integers(1, 4))
def test_an_episode_has_different_rows_of_the_classes_of_its_split(
    split_seed: int, step: int, ways: int, shots: int, queries: int
) -> None:
    data = classes(15, split_seed=split_seed)
    members = {split: {int(name) for name in names} for split, names in data.members.items()}
    assert sum(map(len, members.values())) == len(set.union(*members.values())) == 15
    for split in SPLITS:
        drawn = data.episodes(split, 0, step, range(3), EpisodeSpec(ways, shots, queries))
        for t in range(3):
            support, query = (batch.x[t].int() for batch in drawn)
            rows = {tuple(row) for batch in (support, query) for row in batch.tolist()}
            assert len(rows) == ways * (shots + queries)  # none twice
            chosen = support[:ways, 0].tolist()
            assert len(set(chosen)) == ways
            assert set(chosen) <= members[split]
            for batch, each in ((support, shots), (query, queries)):
                assert batch[:, 0].tolist() == chosen * each  # row k N + n is of class n
            assert drawn.support.y[t].tolist() == [*range(ways)] * shots


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 5), st.integers(0, 1000), st.integers(1, 5), st.integers(1, 4))
def test_an_episode_of_a_regression_has_different_rows_of_one_task(
    split_seed: int, step: int, shots: int, queries: int
) -> None:
    data = tasks(split_seed=split_seed)
    for split in SPLITS:
        drawn = data.episodes(split, 0, step, range(3), EpisodeSpec(1, shots, queries))
        for t in range(3):
            x, y = (torch.cat([drawn.support[i][t], drawn.query[i][t]]) for i in (0, 1))
            assert len({tuple(row) for row in x.tolist()}) == shots + queries
            assert len(set(x[:, 0].tolist())) == 1
            assert str(int(x[0, 0])) in data.members[split]
            assert torch.equal(y, x @ torch.tensor([[100.0], [1.0]]))


def test_classes_and_rows_are_drawn_equally_often() -> None:
    """Counts within five standard deviations of a binomial."""
    data, draws = classes(10, 6), 6000
    drawn = data.episodes("train", 0, 0, range(draws), EpisodeSpec(2, 1, 1))
    count = len(data.members["train"])
    rows = torch.cat([drawn.support.x, drawn.query.x], 1)[..., 0].int().flatten().bincount()
    expected = draws * 2 * 2 / count
    assert all(abs(int(rows[int(c)]) - expected) < 10 * expected**0.5 for c in data.members["train"])
    index = drawn.support.x[..., 1].int().flatten().bincount(minlength=6)
    expected = draws * 2 / 6
    assert all(abs(int(n) - expected) < 5 * expected**0.5 for n in index)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 100), st.integers(1, 8), st.integers(0, 5))
def test_a_sample_has_distinct_indices_below_its_limit(seed: int, count: int, beyond: int) -> None:
    drawn = sample(random_bits("train", seed, 0, range(4), count), np.array([count, count + beyond, 10**9, count]))
    for row, limit in zip(drawn, (count, count + beyond, 10**9, count), strict=True):
        assert len(set(row)) == count
        assert all(0 <= index < limit for index in row)


def test_every_ordered_sample_is_equally_likely() -> None:
    drawn = sample(random_bits("train", 0, 0, range(48000), 3), 4)
    _, counts = np.unique(drawn @ [16, 4, 1], return_counts=True)
    assert len(counts) == 24
    assert abs(counts - 2000).max() < 5 * 2000**0.5


def test_inputs_and_targets_are_scaled_by_the_training_rows_alone() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(1990, 7, (200, 3)), rng.normal(5, 100, (200, 2))
    x[:, 2] = 3.0
    task, split = np.repeat(np.arange(10), 20), np.repeat(["train"] * 6 + ["val"] * 2 + ["test"] * 2, 20)
    data = from_arrays(x, y=y, task=task, split=split)
    assert data.x_scale.mean == pytest.approx(x[:120].mean(0))
    assert data.x_scale.deviation == pytest.approx([*x[:120, :2].std(0), 1.0])  # a constant is only shifted
    assert data.y_scale is not None
    assert data.y_scale.deviation == pytest.approx(y[:120].std(0))
    training = data.x[:120].double()
    assert training.mean(0).abs().max() < 1e-6
    assert data.y is not None
    assert torch.allclose(data.y.double(), torch.from_numpy((y - y[:120].mean(0)) / y[:120].std(0)), atol=1e-6)
    facts = data.facts()
    assert facts["inputs_are"] == "3 features z-scored on 6 training tasks"
    assert facts["targets"]["mean"] == pytest.approx(y[:120].mean(0).tolist())


def test_the_error_in_units_of_the_targets() -> None:
    rng = np.random.default_rng(1)
    data = from_tasks([(rng.normal(size=9), rng.normal(3, 50, (9, 2))) for _ in range(10)])
    assert data.y_scale is not None
    y, prediction = torch.randn(6, 2), torch.randn(6, 2)
    for column, error in enumerate(data.metrics.values()):
        expected = float((prediction - y)[:, column].abs().double().mean() * data.y_scale.deviation[column])
        assert float(error(prediction, y)) == pytest.approx(expected)
        assert float(error(torch.cat([prediction, y.exp()], -1), y)) == pytest.approx(expected)  # of a Gaussian
    assert [*data.metrics] == ["mae_y0", "mae_y1"]


def test_splits_are_reproducible_and_a_given_one_is_kept() -> None:
    assert classes().facts()["split_sha256"] == classes().facts()["split_sha256"]
    assert classes().members != classes(split_seed=1).members
    assert [len(names) for names in tasks(ratios=(0.5, 0.25, 0.25)).members.values()] == [10, 5, 5]
    x = np.arange(12)
    data = from_arrays(x, label=x // 2, split=np.repeat(["Train", "valid", "test"], 4))
    assert data.members == {"train": ["0", "1"], "val": ["2", "3"], "test": ["4", "5"]}
    assert data.facts()["split"] == "given"


def test_the_order_of_the_rows_in_the_file_matters_only_within_a_class() -> None:
    x = np.array([[c, i] for c in range(12) for i in range(9)])
    by_class = from_arrays(x, label=x[:, 0], scale="none")
    spec = EpisodeSpec(2, 3, 3)
    a, b = (data.episodes("train", 3, 1, range(4), spec) for data in (by_class, classes()))
    assert torch.equal(a.support.x, b.support.x)
    assert torch.equal(a.query.x, b.query.x)


def refusal(make: Any) -> str:
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_episode_that_is_too_large_names_the_setting_and_the_class() -> None:
    x = np.array([[c, i] for c in range(12) for i in range(3 if c == 7 else 9)])
    data = from_arrays(x, label=x[:, 0], split=np.where(x[:, 0] < 8, "train", np.where(x[:, 0] < 10, "val", "test")))
    with pytest.raises(SettingError) as error:
        data.check("train", EpisodeSpec(3, 1, 5))
    assert str(error.value) == (
        "queries=5: an episode needs 6 rows of each class (1 support, 5 queries); 1 class has fewer: 7 (train) has 3; "
        "data.min_rows=6 leaves such classes out"
    )
    assert "ways=3: must be 2, the classes of the val split" in refusal(lambda: data.check("val", EpisodeSpec(3, 1, 1)))
    kept = from_arrays(x, label=x[:, 0], min_rows=6)
    kept.check("train", EpisodeSpec(2, 1, 5))
    assert kept.facts()["classes_left_out"] == 1
    assert all("7" not in names for names in kept.members.values())


MISTAKES = {
    "min_rows=10: leaves no class: the largest of 12 has 9": lambda: classes(min_rows=10),
    "ratios=[0.5, 0.5]: must be three numbers": lambda: classes(ratios=(0.5, 0.5)),
    "scale=log: choices: auto, zscore, depth, none": lambda: from_arrays([1.0], label=[1], scale="log"),
    "split=ratio: leaves no class for val (1 class": lambda: from_arrays([1.0, 2.0], label=[1, 1]),
    "from_arrays, row 1: split 'third' is none of train": lambda: from_arrays(
        [1, 2], label=[1, 2], split=["train", "third"]
    ),
    "from_arrays, row 1: class a is in test, but in train at from_arrays, row 0; a class belongs to one": lambda: (
        from_arrays([1, 2], label=["a", "a"], split=["train", "test"])
    ),
    "from_arrays, row 2: position [1] holds inf": lambda: from_arrays(
        np.array([[1, 1], [1, 1], [1, np.inf]]), label=["a", "b", "c"]
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_each_mistake_gets_a_line(message: str) -> None:
    assert message in refusal(MISTAKES[message])


def test_from_tasks_is_from_arrays_with_the_tasks_joined() -> None:
    rng = np.random.default_rng(2)
    pairs = [(rng.normal(size=(n, 2)), rng.normal(size=n)) for n in (7, 8, 9, 10, 7, 8)]
    joined = from_arrays(
        np.concatenate([x for x, _ in pairs]),
        y=np.concatenate([y for _, y in pairs]),
        task=np.repeat(np.arange(6), [len(x) for x, _ in pairs]),
    )
    made = from_tasks(pairs)
    assert torch.equal(made.x, joined.x)
    assert made.facts() == joined.facts()
    assert refusal(lambda: from_tasks([*pairs, (np.ones((3, 2)), np.ones(4))])).startswith(
        "tasks=6: has x [3, 2] and y [4, 1]: not one target for each row"
    )
    assert "other columns than the first task" in refusal(lambda: from_tasks([*pairs, (np.ones(3), np.ones(3))]))
    assert refusal(lambda: from_tasks([])).startswith("tasks=[]: must be a list of pairs")
