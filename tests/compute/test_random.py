"""Random numbers as a function of (split, seed, step, task), and what is made of them.

Tolerances of moments are five standard errors: at a fixed seed a test passes or fails for good, and a right
implementation had one chance in about two million to fail at the seed that was written down.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers.philox import MASK, assert_equally_often, philox4x64

from metarun.compute.random import SPLITS, choose, normal, random_bits, uniform

MAX = np.uint64(MASK)


def bits(count: int, words: int, seed: int = 0) -> np.ndarray:
    return random_bits("train", seed, 0, range(count), words)


@pytest.mark.parametrize(
    ("counter", "key", "block"),
    [
        ([0] * 4, (0, 0), [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]),
        ([MASK] * 4, (MASK, MASK), [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0]),
    ],
)
def test_the_reference_below_gives_the_published_vectors(
    counter: list[int], key: tuple[int, int], block: list[int]
) -> None:
    """Known answers that come with Random123, so that the next test compares with Philox and not with a mistake."""
    assert philox4x64(counter, key) == block


@pytest.mark.parametrize("split", SPLITS)
def test_words_are_the_philox_blocks_that_the_module_documents(split: str) -> None:
    """Key = seed, counter = (block, step, split, 0), task i owns the blocks from i ceil(words / 4); NumPy counts up
    before it draws, hence + 1. If this changes, every stored episodes_sha256 changes its meaning."""
    seed, step, words = 11, 5, 6
    drawn = random_bits(split, seed, step, range(2, 5), words)
    for row, task in zip(drawn, range(2, 5), strict=True):
        blocks = [philox4x64([2 * task + b + 1, step, SPLITS.index(split), 0], (seed, 0)) for b in range(2)]
        assert row.tolist() == (blocks[0] + blocks[1])[:words]


@pytest.mark.parametrize("words", [1, 3, 4, 5, 33])
def test_slices_of_tasks_equal_the_whole(words: int) -> None:
    """A rank or a worker draws its own slice only, and must meet the same tasks."""
    whole = random_bits("val", 3, 7, range(10), words)
    assert whole.shape == (10, words)
    for start, stop in [(0, 1), (0, 4), (4, 10), (9, 10)]:
        np.testing.assert_array_equal(random_bits("val", 3, 7, range(start, stop), words), whole[start:stop])


def test_a_slice_without_tasks_is_empty() -> None:
    """The share of a rank that has none, when there are fewer tasks than ranks."""
    assert random_bits("train", 0, 0, range(4, 4), 5).shape == (0, 5)


def test_drawing_something_else_first_changes_nothing() -> None:
    before = random_bits("train", 1, 2, range(3), 9)
    random_bits("test", 5, 6, range(7), 8)
    np.random.seed(0)
    np.testing.assert_array_equal(random_bits("train", 1, 2, range(3), 9), before)


def test_every_split_seed_step_and_task_has_words_of_its_own() -> None:
    """All words of 3 x 3 x 3 combinations and 4 tasks differ: among 2^64 values 864 words collide with
    probability 864^2 / 2^65, which is 2e-14."""
    drawn = [
        random_bits(split, seed, step, range(4), 8) for split in SPLITS for seed in (0, 1, 2) for step in (0, 1, 2)
    ]
    assert len(np.unique(np.concatenate(drawn))) == 27 * 4 * 8


def test_the_largest_seed_step_and_task_that_can_be_asked_for_work() -> None:
    """Seeds and steps are below 2^63, and population statistics are drawn at step 2^63."""
    top = 2**63
    drawn = [
        *random_bits("train", top - 1, 0, range(1), 4),
        *random_bits("train", 0, top, range(1), 4),
        *random_bits("train", 0, top - 1, range(1), 4),
        *random_bits("train", 0, 0, range(2**60, 2**60 + 2), 4),
        *random_bits("train", 0, 0, range(1), 4),
    ]
    assert len(np.unique(drawn)) == 6 * 4


def test_uniform_stays_in_its_range_at_the_extreme_words() -> None:
    """The least word gives `low` and the greatest the last number below `high`: 53 bits are kept of 64."""
    extremes = np.array([0, MASK], dtype=np.uint64)
    low, high = uniform(extremes, 0, 1)
    assert low == 0
    assert high == 1 - 2.0**-53
    low, high = uniform(extremes, -5, 5)
    assert low == -5
    assert 4.999 < high < 5
    assert set(uniform(extremes, 0, 4).astype(int)) == {0, 3}


def test_uniform_has_the_moments_of_its_range() -> None:
    """U[-2, 3]: mean 0.5 with standard error 5 / sqrt(12 n); variance 25/12 with standard error
    sqrt((mu4 - var^2) / n), where mu4 = 5^4 / 80."""
    n = 200_000
    x = uniform(bits(n, 1), -2, 3)
    assert x.min() >= -2
    assert x.max() < 3
    assert abs(x.mean() - 0.5) < 5 * 5 / np.sqrt(12 * n)
    assert abs(x.var() - 25 / 12) < 5 * np.sqrt((5**4 / 80 - (25 / 12) ** 2) / n)
    assert_equally_often(uniform(bits(n, 1), 0, 16).astype(int), 16)


def test_normal_has_the_moments_of_the_standard_normal() -> None:
    """Mean 0, variance 1, third moment 0, fourth 3, with standard errors sqrt(1, 2, 15, 96 over n)."""
    n = 200_000
    z = normal(*bits(n, 2).T)
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((z**power).mean() - moment) < 5 * np.sqrt(variance / n), f"moment {power}"
    beyond = (np.abs(z) > 1.959964).mean()
    assert abs(beyond - 0.05) < 5 * np.sqrt(0.05 * 0.95 / n)


def test_normal_is_finite_at_the_extreme_words() -> None:
    """Box and Muller takes a logarithm: the greatest word must not give log 0. Its radius is sqrt(2 x 53 log 2)."""
    a, b = np.meshgrid(np.array([0, MASK], dtype=np.uint64), np.array([0, MASK], dtype=np.uint64))
    z = normal(a.ravel(), b.ravel())
    assert np.isfinite(z).all()
    assert abs(z).max() == pytest.approx(np.sqrt(106 * np.log(2)))


@pytest.mark.parametrize(("total", "count"), [(1, 1), (5, 1), (5, 4), (5, 5), (40, 7)])
def test_choose_gives_distinct_indices_in_range(total: int, count: int) -> None:
    chosen = choose(bits(500, total), count)
    assert chosen.shape == (500, count)
    assert chosen.min() >= 0
    assert chosen.max() < total
    assert all(len(set(row)) == count for row in chosen.tolist())


@pytest.mark.parametrize(("total", "count"), [(5, 3), (5, 1), (4, 4), (6, 5)])
def test_choose_gives_every_ordered_selection_equally_often(total: int, count: int) -> None:
    """C! / (C - count)! ordered selections, equally likely: that is, each index equally often at each position and
    the order uniformly random. With `count` = C these are the permutations."""
    kinds = int(np.prod(np.arange(total - count + 1, total + 1)))
    assert_equally_often(choose(bits(500 * kinds, total, seed=1), count), kinds)


def test_choose_takes_the_smallest_words_in_their_order() -> None:
    """What makes it uniform, and what lets a caller rule an index out by making its word the largest."""
    for total, count in [(9, 1), (9, 4), (9, 8), (9, 9), (300, 1), (1000, 400)]:
        words = bits(200, total)
        np.testing.assert_array_equal(choose(words, count), np.argsort(words, axis=-1)[:, :count])
    words = bits(200, 9)
    words[:, 3] = MAX
    assert not (choose(words, 8) == 3).any()


def test_choose_works_along_the_last_axis_of_any_shape() -> None:
    words = bits(6, 20).reshape(6, 4, 5)
    chosen = choose(words, 2)
    assert chosen.shape == (6, 4, 2)
    np.testing.assert_array_equal(chosen[2, 3], choose(words[2, 3], 2))
